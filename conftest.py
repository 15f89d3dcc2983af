"""The plugins of the suite; everything else is in them."""

pytest_plugins = [
    "hpsbench.plugin",
    "fixtures.serving",
    "fixtures.benchmarks",
    "fixtures.open_loop",
]
