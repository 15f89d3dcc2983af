"""Code written for `hierarchical_parameter_server` runs under Keras 3 and under Keras 2."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FLOWS = Path(__file__).with_name("keras_flows.py")


@pytest.mark.parametrize(("legacy", "version"), [("0", "Keras 3"), ("1", "Keras 2")])
def test_programs_run_under(legacy, version):
    if legacy == "1" and importlib.util.find_spec("tf_keras") is None:
        pytest.skip(
            "Keras 2 is not installed: pip install --no-deps 'tf-keras==2.21.*', as CI does"
        )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FLOWS],
        env={**os.environ, "TF_USE_LEGACY_KERAS": legacy},
        cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{version}:\n{result.stdout[-6000:]}"
    assert " passed" in result.stdout
    assert " skipped" not in result.stdout
