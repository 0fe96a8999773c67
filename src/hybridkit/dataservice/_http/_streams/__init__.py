"""The routes of streams: append, one stream, the log."""
