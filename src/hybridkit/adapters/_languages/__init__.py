"""Languages of an API: chosen for each request, and spoken in its problems."""
