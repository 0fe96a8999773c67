"""Exchanges, queues and bindings: planned, declared, and compared with what is there."""
