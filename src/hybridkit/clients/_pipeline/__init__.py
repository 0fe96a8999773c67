"""One call of a client, however many attempts it takes."""
