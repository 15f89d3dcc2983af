"""The plugins of the suite; everything else is in them."""

import os

# Before TensorFlow is imported anywhere: its INFO lines would stand between the results.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow would take all of a GPU, which it shares with our caches and servers here.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

pytest_plugins = [
    "hpsbench.plugin",
    "fixtures.serving",
    "fixtures.benchmarks",
    "fixtures.open_loop",
]
