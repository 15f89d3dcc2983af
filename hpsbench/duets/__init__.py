"""Pairs of servers, asked in turn and judged: what `compare` and `selftest` are made of."""
