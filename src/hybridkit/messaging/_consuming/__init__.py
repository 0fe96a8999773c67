"""The consumer: deliveries received, ordered, handled and settled."""
