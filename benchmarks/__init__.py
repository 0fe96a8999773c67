"""Benchmarks: each compares with a peer in one run and prints one JSON object per line with `--json`."""
