"""The example of many tables runs as its docstring says, and prints what it measured."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "table_fusion.py"


@pytest.mark.parametrize("num_tables", [8, 100])
def test_many_tables_are_served_unfused_and_fused(num_tables):
    result = subprocess.run(
        [sys.executable, EXAMPLE, f"--tables={num_tables}", "--repeats=2", "--batch-size=32"],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    times = r" +[\d.]+ ms +[\d.]+ ms +[\d.]+ ms +[\d.]+\n"
    for flag in ("false", "true"):
        assert re.search(rf"^{flag}{times}", result.stdout, re.MULTILINE), result.stdout
    assert "all four answer alike, bit for bit" in result.stdout
    published = "published, Tesla V100-SXM2-32GB"
    assert (published in result.stdout) == (num_tables == 8)
    if num_tables == 8:
        assert re.search(r"^true +536.0 ms +- +9.44 ms$", result.stdout, re.MULTILINE)
