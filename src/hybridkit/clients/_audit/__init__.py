"""The client's side of the audit trail."""
