"""Streams for clients: append, load, decide, read the log."""
