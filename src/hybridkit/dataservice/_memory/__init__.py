"""The store in memory, behind the fake data service."""
