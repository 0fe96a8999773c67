"""Typed building blocks for microservices that reach data over HTTP and each other through events."""
