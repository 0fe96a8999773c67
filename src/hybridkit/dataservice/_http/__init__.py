"""The HTTP side of a data service: requests become operations of a store, and outcomes become responses."""
