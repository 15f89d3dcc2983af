"""A small process between the tests and Triton, which cleans up after either of them is killed.

Run as a script, by `process.py`, with one JSON object on its command line (`Order`). It starts the
child, and once the child has ended, or was told to, or standard input was closed, it kills what
the child left behind, removes its shared memory and its scratch folder, and says how the child
ended. Only this process can do that: a SIGKILLed pytest runs no handler, and the Python backend's
stubs were seen to outlive a Triton that had gone, in a process group of nobody.

It imports the standard library alone, so that it starts within some 30 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: Stands for the scratch folder in an order's command.
SCRATCH = "{scratch}"

_SHARED_MEMORY = Path("/dev/shm")
_TEMPORARY = Path("/tmp")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.01
#: A closed pipe tells at once that the parent died, unless a fork of the parent holds it open.
_PARENT_CHECK_S = 0.5
_KILL_DEADLINE_S = 5.0
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def supervise(order: dict[str, Any]) -> dict[str, Any]:
    """Run the child of an order to its end, clean up, and return `{"status": return code}`.

    An order holds `command`, `log`, `parent` (process id), `prepend` (environment variable ->
    folders), `defaults` (environment variable -> value where there is none), `links` (path below
    the scratch folder -> target) and `shared_memory_prefix`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Grandchildren whose parent died become children of this process, and can be found.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _wake_on_signals()
    scratch = Path(tempfile.mkdtemp(prefix="hpsbench-triton-"))
    child = None
    try:
        for name, target in order["links"].items():
            link = scratch / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        child = _start(order, scratch, libc)
        _say({"pid": child.pid, "scratch": str(scratch)})
        return {"status": _watch(child, order["parent"], wakeup)}
    except OSError as error:
        return {"error": f"{error.filename or order['command'][0]}: {error.strerror}"}
    finally:
        if child is not None:
            kill_group(child.pid)
            _kill_descendants()
            child.wait()
            _reap()
        remove_leftovers(order["shared_memory_prefix"], scratch)


def _wake_on_signals() -> int:
    """Return a descriptor that becomes readable when a child ends or this process shall."""
    read_end, write_end = os.pipe()
    for descriptor in (read_end, write_end):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_END_SIGNALS):
        signal.signal(number, lambda number, frame: None)
    return read_end


def _say(event: dict[str, Any]) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


def _start(order: dict[str, Any], scratch: Path, libc: ctypes.CDLL) -> subprocess.Popen[bytes]:
    supervisor = os.getpid()

    def tie_to_supervisor() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The supervisor may have died before the line above: nobody would send the signal.
        if os.getppid() != supervisor:
            os._exit(127)

    temporary = scratch / "tmp"
    temporary.mkdir()
    # What a killed server's libraries leave there goes with the scratch folder.
    environment = {**order["defaults"], **os.environ, "TMPDIR": str(temporary)}
    for variable, folders in order["prepend"].items():
        inherited = [environment[variable]] if environment.get(variable) else []
        environment[variable] = ":".join([*folders, *inherited])
    with Path(order["log"]).open("ab") as log:
        return subprocess.Popen(
            [argument.replace(SCRATCH, str(scratch)) for argument in order["command"]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=tie_to_supervisor,
        )


def _watch(child: subprocess.Popen[bytes], parent: int, wakeup: int) -> int:
    """Return the child's return code; a line `stop SECONDS` on standard input ends it earlier."""
    deadline = float("inf")
    while (status := child.poll()) is None:
        now = time.monotonic()
        if now >= deadline or os.getppid() != parent:
            kill_group(child.pid)
            return child.wait()
        timeout_s = min(_PARENT_CHECK_S, deadline - now)
        readable, _, _ = select.select([0, wakeup], [], [], timeout_s)
        if wakeup in readable and set(os.read(wakeup, 256)) & {int(s) for s in _END_SIGNALS}:
            deadline = 0.0
        if 0 in readable:
            # The descriptor itself: nothing may linger in a buffer of sys.stdin.
            command = os.read(0, 256).decode().split()
            if command:
                child.send_signal(signal.SIGTERM)
                deadline = time.monotonic() + float(command[-1])
            else:
                deadline = 0.0
    return status


def kill_group(pid: int) -> None:
    """SIGKILL the process group that `pid` leads, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _kill_descendants() -> None:
    """SIGKILL what left the group, and wait until all of it is gone."""
    deadline = time.monotonic() + _KILL_DEADLINE_S
    while (found := _live_descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _reap() -> None:
    # Process 1 of a container often reaps nobody.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _live_descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    live = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in brackets may itself hold brackets and blanks.
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            pid = int(stat.parent.name)
            children.setdefault(int(parent), []).append(pid)
            if state != "Z":
                live.add(pid)
    found: list[int] = []
    unvisited = [root]
    while unvisited:
        unvisited.extend(below := children.get(unvisited.pop(), []))
        found.extend(below)
    return [pid for pid in found if pid in live]


def remove_leftovers(shared_memory_prefix: str, scratch: Path | None) -> None:
    """Remove the shared memory regions of this prefix, the scratch folder and Triton's own."""
    if shared_memory_prefix:
        for region in _SHARED_MEMORY.glob(f"{shared_memory_prefix}*"):
            region.unlink(missing_ok=True)
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    remove_environment_folders(_TEMPORARY)


def remove_environment_folders(parent: Path) -> None:
    """Remove the empty folders that killed Python backends left, unless a Triton still runs.

    The backend makes `python_env_XXXXXX` below /tmp, whatever TMPDIR says, and nothing tells whose
    it is: so the last Triton of this user to end removes them all.
    """
    if _another_triton_runs():
        return
    for folder in parent.glob("python_env_??????"):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _another_triton_runs() -> bool:
    for command in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if command.read_text().strip() == "tritonserver":
                status = (command.parent / "stat").read_text().rpartition(")")[2].split()[0]
                if status != "Z":
                    return True
    return False


if __name__ == "__main__":
    result = supervise(json.loads(sys.argv[1]))
    # Nobody reads this after the parent was killed.
    with contextlib.suppress(BrokenPipeError):
        _say(result)
