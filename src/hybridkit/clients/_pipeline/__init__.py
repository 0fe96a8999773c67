"""A client's call: its attempts, and what limits and observes them."""
