"""AMQP 0-9-1: supervised connections and channels, frames, and headers."""
