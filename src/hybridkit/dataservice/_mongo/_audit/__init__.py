"""The audit trail in MongoDB, whose entries begin in the documents that they are about."""
