"""Erasure of a person's data in PostgreSQL: records, events with their snapshots, and sagas."""
