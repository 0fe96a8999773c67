"""The publisher: messages written, and confirmed by the broker."""
