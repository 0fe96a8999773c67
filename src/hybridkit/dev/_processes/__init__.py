"""Child processes that are started, watched and stopped together."""
