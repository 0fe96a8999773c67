"""The contract's routes: from requests to operations of a store, and back to responses."""
