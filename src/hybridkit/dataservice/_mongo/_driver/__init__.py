"""The way to the server: its client, what it can, transactions, and what errors mean."""
