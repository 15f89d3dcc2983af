"""The commands of `hpsbench` that take options of their own, one a file."""
