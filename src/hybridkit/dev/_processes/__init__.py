"""Processes of one's own: started, watched and stopped together."""
