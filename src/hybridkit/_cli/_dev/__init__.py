"""`hybridkit dev`: the processes of a project while they are developed."""
