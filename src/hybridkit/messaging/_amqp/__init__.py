"""AMQP 0-9-1: connections and channels that come back, frames, and headers."""
