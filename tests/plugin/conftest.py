"""What every test of the plugin starts from: an empty project with scripted benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from hpsbench import plugin
from tests.scripted import MACHINE

BENCHMARKS = """
import json, pathlib, pytest
from tests.scripted import measurement

SCRIPT = json.loads(pathlib.Path("script.json").read_text())

@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("variant", ["native_tf", "hps_tf"])
def test_latency(variant, batch_size, gate):
    gate(measurement(variant, batch_size, **SCRIPT.get(f"{variant}-b{batch_size}", {})))
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty project that loads the plugin, on the machine `MACHINE` without a GPU."""
    for name in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(plugin, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(plugin, "find_gpus", lambda: ())
    pytester.makeconftest('pytest_plugins = ["hpsbench.plugin"]')
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester


@pytest.fixture
def session(project: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Return a function that runs one benchmark session, `script` changing its measurements."""
    folder = project.mkdir("bench")
    (folder / "test_latency.py").write_text(BENCHMARKS)

    def run(*arguments: str, script: dict[str, Any] | None = None) -> pytest.RunResult:
        (project.path / "script.json").write_text(json.dumps(script or {}))
        paths = () if any(a.startswith("bench") for a in arguments) else ("bench",)
        return project.runpytest_inprocess("--preset=smoke", *paths, *arguments)

    return run
