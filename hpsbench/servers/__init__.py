"""Triton: found, started, watched, asked for its statistics, and stopped whatever happens."""
