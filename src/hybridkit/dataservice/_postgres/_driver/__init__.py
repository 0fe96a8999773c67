"""Connections to PostgreSQL: URLs, one connection, the pool, codecs, and the translation of errors."""
