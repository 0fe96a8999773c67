"""The audit trail in PostgreSQL: the trigger that writes it, its partitions, and how its entries are read."""
