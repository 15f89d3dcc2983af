"""The benchmarks as pytest collects them, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_has_a_test_per_batch_size() -> None:
    options = ["--preset", "smoke", "--set", 'load.also_keys=["zipf"]']
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", *options]
    found = subprocess.run(
        [*command, "--variants", "native_tf,hps_tf", "tests/benchmarks/test_latency.py"],
        cwd=ROOT,
        # Not a part of the pytest that runs this one, whose workers switch benchmarks off.
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    rows = ("native_tf", "hps_tf", "native_tf-zipf", "hps_tf-zipf")
    for size in (7, 64):
        for row in rows:
            assert f"test_latency.py::test_latency[{size}-{row}]" in found.stdout
    assert "8 tests collected" in found.stdout
