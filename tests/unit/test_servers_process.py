"""A child process is watched and ended, and leaves nothing behind, whoever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

from hpsbench.errors import ServerError
from hpsbench.servers import supervisor
from hpsbench.servers.process import SCRATCH, ChildProcess, Command, log_tail

SHARED_MEMORY = Path("/dev/shm")
PATIENCE_S = 5.0

#: Starts a process (with a fork of itself, or `alone`); returns it and its child's process id.
RunParent: TypeAlias = Callable[..., tuple[subprocess.Popen[bytes], int]]


def eventually(truth: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if truth():
            return True
        time.sleep(0.02)
    return truth()


def wait_for_end(child: ChildProcess) -> int:
    assert eventually(lambda: child.poll() is not None)
    status = child.poll()
    assert status is not None
    return status


def processes_with(text: str) -> list[int]:
    """Return the live processes whose command line holds `text`."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in command.read_bytes():
                found.append(int(command.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture
def token() -> str:
    return f"hpsbench-test-{uuid.uuid4().hex}"


@pytest.fixture
def scratch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where supervisors started by this test make their scratch folders."""
    home = tmp_path / "scratch"
    home.mkdir()
    monkeypatch.setenv("TMPDIR", str(home))
    return home


def shell(script: str, **options: object) -> Command:
    return Command(arguments=["/bin/sh", "-c", script], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", -signal.SIGSEGV)],
    ids=["success", "exit-status", "signal"],
)
def test_a_child_that_ends_says_how(tmp_path: Path, script: str, status: int) -> None:
    child = ChildProcess(shell(script), log=tmp_path / "log")
    assert wait_for_end(child) == status
    assert child.stop(grace_s=1) == status


def test_output_and_errors_go_to_the_log_whose_tail_can_be_read(tmp_path: Path) -> None:
    log = tmp_path / "new" / "log"
    child = ChildProcess(shell("seq 1 30; echo oops >&2"), log=log)
    wait_for_end(child)
    assert child.log_tail(2) == "30\noops"
    assert log_tail(log, 100).startswith("1\n2\n")
    assert log_tail(tmp_path / "missing") == ""


def test_stop_lets_the_child_end_in_order_and_may_be_repeated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.02; done"
    child = ChildProcess(shell(script), log=log)
    assert eventually(lambda: log.read_text() == "ready\n")
    assert child.poll() is None
    assert child.stop(grace_s=5) == 3
    assert child.stop(grace_s=5) == 3
    assert log.read_text() == "ready\nbye\n"


def test_stop_kills_a_child_that_ignores_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = ChildProcess(shell("trap '' TERM; echo ready; while :; do sleep 0.02; done"), log=log)
    assert eventually(lambda: log.read_text() == "ready\n")
    started = time.monotonic()
    assert child.stop(grace_s=0.2) == -signal.SIGKILL
    assert time.monotonic() - started < 3


def test_grandchildren_in_sessions_of_their_own_end_too(tmp_path: Path, token: str) -> None:
    script = f"setsid sh -c ': {token}; sleep 60; :' & echo ready; wait"
    log = tmp_path / "log"
    child = ChildProcess(shell(script), log=log)
    assert eventually(lambda: len(processes_with(token)) >= 2)
    child.stop(grace_s=1)
    assert processes_with(token) == []


def test_grandchildren_end_with_a_child_that_dies_on_its_own(tmp_path: Path, token: str) -> None:
    script = f"setsid sh -c ': {token}; sleep 60; :' & sleep 0.1; exit 5"
    child = ChildProcess(shell(script), log=tmp_path / "log")
    assert wait_for_end(child) == 5
    assert processes_with(token) == []


def test_links_lie_in_a_scratch_folder_that_goes_with_the_child(
    tmp_path: Path, scratch_home: Path
) -> None:
    target = tmp_path / "target"
    target.write_text("linked")
    child = ChildProcess(
        Command(arguments=["/bin/cat", f"{SCRATCH}/deep/link"], links={"deep/link": str(target)}),
        log=tmp_path / "log",
    )
    assert wait_for_end(child) == 0
    assert child.log_tail() == "linked"
    assert list(scratch_home.iterdir()) == []


def test_temporary_files_of_a_killed_child_go_with_it(tmp_path: Path, scratch_home: Path) -> None:
    script = "import os, tempfile; tempfile.mkstemp(); os.kill(os.getpid(), 9)"
    command = Command(arguments=[sys.executable, "-c", script])
    child = ChildProcess(command, log=tmp_path / "log")
    assert wait_for_end(child) == -9
    assert list(scratch_home.iterdir()) == []


def test_default_variables_leave_those_that_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SET", "mine")
    monkeypatch.delenv("UNSET", raising=False)
    defaults = {"SET": "other", "UNSET": "given"}
    child = ChildProcess(shell("echo $SET $UNSET", defaults=defaults), log=tmp_path / "log")
    wait_for_end(child)
    assert child.log_tail() == "mine given"


def test_folders_are_put_before_what_a_variable_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELD", "/inherited")
    monkeypatch.delenv("EMPTY", raising=False)
    prepend = {"HELD": ["/first", "/second"], "EMPTY": ["/only"]}
    child = ChildProcess(shell("echo $HELD $EMPTY", prepend=prepend), log=tmp_path / "log")
    wait_for_end(child)
    assert child.log_tail() == "/first:/second:/inherited /only"


def test_shared_memory_of_the_prefix_alone_is_removed(tmp_path: Path, token: str) -> None:
    foreign = SHARED_MEMORY / f"{token[:-1]}-foreign"
    foreign.touch()
    try:
        child = ChildProcess(
            shell(f"touch /dev/shm/{token}-region; kill -KILL $$", shared_memory_prefix=token),
            log=tmp_path / "log",
        )
        assert wait_for_end(child) == -signal.SIGKILL
        assert not list(SHARED_MEMORY.glob(f"{token}*"))
        assert foreign.exists()
    finally:
        foreign.unlink()


def test_a_program_that_cannot_be_executed_is_an_error_with_its_name(
    tmp_path: Path, scratch_home: Path
) -> None:
    with pytest.raises(ServerError, match=r"cannot start /no/such/program: .*No such file"):
        ChildProcess(Command(arguments=["/no/such/program"]), log=tmp_path / "log")
    assert list(scratch_home.iterdir()) == []


PARENT = """
import os, sys, time
from pathlib import Path
from hpsbench.servers.process import ChildProcess, Command
token, folder, fork = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "fork"
script = f"touch /dev/shm/{token}-region; setsid sh -c ': {token}; sleep 60; :' & wait"
child = ChildProcess(
    Command(arguments=["/bin/sh", "-c", script], shared_memory_prefix=token), log=folder / "log")
# A fork holds the pipe to the supervisor open after its parent has died.
if not fork or os.fork():
    print("ready", child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def run_parent(tmp_path: Path, scratch_home: Path, token: str) -> Iterator[RunParent]:
    """Start a process with a child, and return both; what is left of them ends with the test."""
    with contextlib.ExitStack() as stack:

        def run(fork: str = "alone") -> tuple[subprocess.Popen[bytes], int]:
            parent = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PARENT, token, str(tmp_path), fork],
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(kill_all, token)
            assert parent.stdout is not None
            ready, pid = parent.stdout.readline().split()
            assert ready == b"ready"
            assert eventually((SHARED_MEMORY / f"{token}-region").exists)
            return parent, int(pid)

        yield run


def kill_all(token: str) -> None:
    for pid in processes_with(token):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


@pytest.mark.parametrize(
    ("number", "fork"),
    [(signal.SIGKILL, "alone"), (signal.SIGTERM, "alone"), (signal.SIGKILL, "fork")],
    ids=["SIGKILL", "SIGTERM", "SIGKILL-with-a-fork"],
)
def test_nothing_survives_a_parent_that_is_killed(
    run_parent: RunParent, scratch_home: Path, token: str, number: signal.Signals, fork: str
) -> None:
    parent, child = run_parent(fork)
    assert list(scratch_home.iterdir())
    (supervisor_pid,) = {psutil.Process(child).ppid()}
    forks = set(children_of(parent.pid)) - {supervisor_pid}
    assert len(forks) == (fork == "fork")
    parent.send_signal(number)
    parent.wait()
    assert eventually(lambda: set(processes_with(token)) == forks)
    assert not (SHARED_MEMORY / f"{token}-region").exists()
    assert list(scratch_home.iterdir()) == []


def test_a_child_dies_even_if_its_parent_and_its_supervisor_are_killed(
    run_parent: RunParent, token: str
) -> None:
    parent, child = run_parent()
    supervisor_pid = psutil.Process(child).ppid()
    # Stopped, it sees nothing of its parent's end.
    os.kill(supervisor_pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    os.kill(supervisor_pid, signal.SIGKILL)
    assert eventually(lambda: child not in processes_with(token))
    (SHARED_MEMORY / f"{token}-region").unlink()


def test_a_parent_that_died_before_the_supervisor_looked_is_noticed(
    tmp_path: Path, scratch_home: Path, token: str
) -> None:
    order = {
        "command": ["/bin/sh", "-c", f": {token}; sleep 60; :"],
        "log": str(tmp_path / "log"),
        "parent": os.getpid() + 1_000_000,
        "prepend": {},
        "defaults": {},
        "links": {},
        "shared_memory_prefix": token,
    }
    with subprocess.Popen(
        [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        # Its standard input stays open: only the parent's process id tells.
        assert process.wait(timeout=PATIENCE_S) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.readlines()[-1]) == {"status": -signal.SIGKILL}
    assert processes_with(token) == []
    assert list(scratch_home.iterdir()) == []


def test_a_child_dies_with_its_supervisor_and_its_leftovers_are_removed(
    tmp_path: Path, scratch_home: Path, token: str
) -> None:
    script = f"touch /dev/shm/{token}-region; sleep 60; :"
    child = ChildProcess(shell(script, shared_memory_prefix=token), log=tmp_path / "log")
    assert eventually((SHARED_MEMORY / f"{token}-region").exists)
    os.kill(psutil.Process(child.pid).ppid(), signal.SIGKILL)
    assert wait_for_end(child) == -signal.SIGKILL
    assert eventually(lambda: child.pid not in processes_with(token))
    assert not (SHARED_MEMORY / f"{token}-region").exists()
    assert list(scratch_home.iterdir()) == []


def test_a_told_supervisor_ends_the_child(tmp_path: Path, scratch_home: Path) -> None:
    child = ChildProcess(shell("exec sleep 60"), log=tmp_path / "log")
    os.kill(psutil.Process(child.pid).ppid(), signal.SIGTERM)
    assert wait_for_end(child) == -signal.SIGKILL
    assert list(scratch_home.iterdir()) == []


def test_environment_folders_stay_while_a_triton_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, used, other = (tmp_path / n for n in ("python_env_aB3dE6", "python_env_used00", "x"))
    for folder in (empty, used, other):
        folder.mkdir()
    (used / "file").touch()
    monkeypatch.setattr(supervisor, "_another_triton_runs", lambda: True)
    supervisor.remove_environment_folders(tmp_path)
    assert empty.exists()
    monkeypatch.setattr(supervisor, "_another_triton_runs", lambda: False)
    supervisor.remove_environment_folders(tmp_path)
    assert [f.exists() for f in (empty, used, other)] == [False, True, True]
