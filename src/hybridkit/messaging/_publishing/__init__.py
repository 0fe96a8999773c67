"""Publishing: events and commands, written in batches and confirmed by the broker."""
