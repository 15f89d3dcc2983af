"""Whatever ends pytest, no process, shared memory or folder of its Triton outlives it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpsbench.servers.probe import PROBE_MODEL

pytestmark = pytest.mark.server

PATIENCE_S = 10.0

INNER_TEST = """
import threading, time
from pathlib import Path
import pytest
from hpsbench.config import ServerConfig
from hpsbench.servers import http
from hpsbench.servers.triton import running_triton

BODY = b'{{"inputs": [{{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}}]}}'

@pytest.fixture
def server(tmp_path):
    repository, log = Path({repository!r}), tmp_path / "log"
    with running_triton(repository, [{model!r}], ServerConfig(), log=log) as server:
        yield server

def test_that_is_interrupted(server):
    ask = lambda: http.post(server.http, "/v2/models/{model}/infer", BODY, timeout_s=60)
    threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.3)
    Path({ready!r}).touch()
    time.sleep(60)
"""


@dataclass
class InnerPytest:
    """A pytest of its own session that serves a model, and what would show that it left traces."""

    process: subprocess.Popen[bytes]
    repository: Path
    ready: Path
    scratch: Path

    def server_names(self) -> set[str]:
        return set(re.findall(r"--id=([\w-]+)", "\n".join(self.command_lines().values())))

    def command_lines(self) -> dict[int, str]:
        """Return Triton's, its stubs' and the supervisor's: the repository is in all of them."""
        found = {}
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = file.read_bytes().replace(b"\0", b"\n").decode("utf-8", "replace")
            except OSError:
                continue
            if str(self.repository) in text and "triton" in text:
                found[int(file.parent.name)] = text
        return found


def eventually(truth: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not truth():
        time.sleep(0.05)
    return truth()


def regions(names: set[str]) -> list[str]:
    return [r for r in os.listdir("/dev/shm") if any(r.startswith(name) for name in names)]


@pytest.fixture
def run_inner(tmp_path: Path, model_repository: Path) -> Iterator[Callable[[str], InnerPytest]]:
    """Start pytest on a test that serves a model, in a session of its own."""
    started: list[InnerPytest] = []
    # A link of this test's own, so that command lines tell whose Triton it is.
    repository = tmp_path / "repository"
    repository.symlink_to(model_repository)

    def run(model: str) -> InnerPytest:
        ready, scratch = tmp_path / "ready", tmp_path / "scratch"
        scratch.mkdir()
        test = tmp_path / "test_inner.py"
        names = {"repository": str(repository), "model": model, "ready": str(ready)}
        test.write_text(INNER_TEST.format(**names))
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
             f"--rootdir={tmp_path}", f"--basetemp={tmp_path / 'inner'}", str(test)],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell ignores SIGINT in what it starts in the background, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        started.append(InnerPytest(process, repository, ready, scratch))
        return started[-1]

    yield run
    for inner in started:
        with inner.process as process:
            process.kill()


def assert_no_leftovers(inner: InnerPytest, names: set[str]) -> None:
    assert names
    assert eventually(lambda: not inner.command_lines()), inner.command_lines()
    assert eventually(lambda: not regions(names)), regions(names)
    assert eventually(lambda: not list(inner.scratch.iterdir())), list(inner.scratch.iterdir())


@pytest.mark.parametrize("model", [PROBE_MODEL, "never_yields"], ids=["idle", "busy"])
def test_nothing_outlives_a_pytest_that_is_killed(
    run_inner: Callable[[str], InnerPytest], model: str
) -> None:
    inner = run_inner(model)
    assert eventually(inner.ready.exists), inner.process.stdout
    names = inner.server_names()
    assert regions(names)
    assert list(inner.scratch.iterdir())
    assert len(inner.command_lines()) >= 3
    inner.process.send_signal(signal.SIGKILL)
    assert_no_leftovers(inner, names)


def test_nothing_outlives_a_pytest_that_is_killed_while_models_load(
    run_inner: Callable[[str], InnerPytest],
) -> None:
    inner = run_inner("never_ready")
    assert eventually(lambda: bool(regions(inner.server_names())))
    names = inner.server_names()
    inner.process.send_signal(signal.SIGKILL)
    assert_no_leftovers(inner, names)


@pytest.mark.parametrize("model", [PROBE_MODEL, "never_ready"], ids=["serving", "loading"])
def test_nothing_outlives_a_pytest_that_is_interrupted(
    run_inner: Callable[[str], InnerPytest], model: str
) -> None:
    inner = run_inner(model)
    loading = model == "never_ready"
    assert eventually(
        (lambda: bool(regions(inner.server_names()))) if loading else inner.ready.exists
    )
    names = inner.server_names()
    # As the terminal does: to the whole group of processes in front.
    os.killpg(inner.process.pid, signal.SIGINT)
    output, _ = inner.process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in output
    # In order: nothing is left to a supervisor once pytest has ended.
    assert not inner.command_lines()
    assert_no_leftovers(inner, names)
