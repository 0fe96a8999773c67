"""The outbox: events that a write has stored, published by whoever leases their partition."""
