"""Streams of events in PostgreSQL: their tables, appends, reads of one stream and of the log."""
