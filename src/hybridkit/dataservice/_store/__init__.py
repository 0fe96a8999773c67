"""The store protocol, its operations, and the decisions that all stores share."""
