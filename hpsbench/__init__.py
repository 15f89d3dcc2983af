"""A benchmark regression suite for DLRM on Triton with a Hierarchical Parameter Server."""

__version__ = "0.1.0"
