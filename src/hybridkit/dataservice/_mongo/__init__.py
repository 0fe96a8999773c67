"""The store over MongoDB."""
