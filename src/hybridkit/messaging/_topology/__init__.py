"""Exchanges, queues and bindings: declared, and compared with those of a broker."""
