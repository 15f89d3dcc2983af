"""Model repositories for the tests of servers, and one shared server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpsbench.config import ServerConfig
from hpsbench.servers.probe import PROBE_MODEL, write_probe_model, write_python_model
from hpsbench.servers.triton import TritonServer, running_triton

_MODEL = """\
import os, signal, time

class TritonPythonModel:
    def initialize(self, arguments):
        {initialize}

    def execute(self, requests):
        {execute}
        return []
"""

#: Models that misbehave: what they do in `initialize` and in `execute`.
MISBEHAVING = {
    "raises": ("raise ValueError('table x has 3 rows, not 4')", "pass"),
    "never_ready": ("time.sleep(600)", "pass"),
    "never_yields": ("pass", "while True: pass"),
    "kills_triton_at_start": ("os.kill(os.getppid(), signal.SIGKILL)", "pass"),
    "kills_triton_at_work": ("pass", "os.kill(os.getppid(), signal.SIGSEGV)"),
}


@pytest.fixture(scope="session")
def model_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the probe's model and every misbehaving one."""
    repository = tmp_path_factory.mktemp("models")
    write_probe_model(repository)
    for name, (initialize, execute) in MISBEHAVING.items():
        code = _MODEL.format(initialize=initialize, execute=execute)
        write_python_model(repository, name, code)
    return repository


@pytest.fixture(scope="session")
def probe_server(
    model_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A Triton with the probe's model loaded, for tests that leave it as it was."""
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    with running_triton(model_repository, [PROBE_MODEL], ServerConfig(), log=log) as server:
        yield server
