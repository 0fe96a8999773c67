"""The outbox: events that a write has stored, published by the replica that leases their partition.

`_relay` publishes and marks, `_partition_leases` renews and hands over the leases, `_protocol` is what both need of a
database; PostgreSQL's side is `_postgres._outbox`, MongoDB's `_mongo._outbox`.
"""
