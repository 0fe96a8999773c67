"""Run projections: read the log of a stream, fold its events, and commit changes and position together."""
