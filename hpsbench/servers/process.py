"""A child process that never outlives this one: started, watched, stopped, its log kept."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpsbench.errors import ServerError
from hpsbench.servers import supervisor

#: A command's argument may name the scratch folder, which exists only once the child starts.
SCRATCH = supervisor.SCRATCH

# What the supervisor may need, beyond the child's own deadline, to kill and clean up.
_CLEAN_UP_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to start: arguments, its environment, and scratch links.

    `prepend` are folders to put before environment variables, `defaults` variables for where this
    process has no such ones. `links` maps a path below a private scratch folder to what it points
    to; arguments say `{scratch}` for that folder. `shared_memory_prefix` names the regions below
    /dev/shm that are the child's, and go with it.
    """

    arguments: Sequence[str]
    prepend: Mapping[str, Sequence[str]] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    shared_memory_prefix: str = ""


class ChildProcess:
    """A running command, below a supervisor that ends it when this process dies, however.

    Standard output and error go to `log`. When the child has ended, its whole process group and
    every other descendant, its scratch folder and its shared memory are gone too.
    """

    def __init__(self, command: Command, *, log: Path) -> None:
        """Start the command. Raises ServerError when it cannot be executed."""
        self.log = log
        self._command = command
        self._status: int | None = None
        self._lock = threading.Lock()
        self._scratch: Path | None = None
        order = {
            "command": [str(a) for a in command.arguments],
            "log": str(log),
            "parent": os.getpid(),
            "prepend": {name: list(folders) for name, folders in command.prepend.items()},
            "defaults": dict(command.defaults),
            "links": dict(command.links),
            "shared_memory_prefix": command.shared_memory_prefix,
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as log_file:
            # Its own session: Ctrl-C at the terminal must not reach it before this process.
            # Isolated (-I): the script's own folder has an http.py, and must not be searched.
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
            )
        started = self._read_event()
        if "pid" not in started:
            self._supervisor.wait()
            self._close()
            raise ServerError(
                f"cannot start {command.arguments[0]}: {started.get('error', 'no answer')}",
                hint=f"read {log}; is the program executable on this machine?",
            )
        self.pid = int(started["pid"])
        self._scratch = Path(started["scratch"])

    def poll(self) -> int | None:
        """Return None while the child runs, then its return code (-N: killed by signal N)."""
        with self._lock:
            if self._status is None and self._supervisor.poll() is not None:
                self._finish()
            return self._status

    def is_running(self) -> bool:
        """Return whether the child itself runs; after its end, cleaning up may still go on."""
        if self.poll() is not None:
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state not in ("Z", "X")

    def stop(self, grace_s: float) -> int:
        """Ask the child to end (SIGTERM), kill it after `grace_s`, and return its return code.

        Returns once everything of the child is gone. Calling it again changes nothing.
        """
        if self.poll() is None:
            assert self._supervisor.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._supervisor.stdin.write(f"stop {grace_s}\n".encode())
                self._supervisor.stdin.flush()
            try:
                self._supervisor.wait(grace_s + _CLEAN_UP_S)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
                self._supervisor.wait()
        status = self.poll()
        assert status is not None
        return status

    def log_tail(self, n: int = 20) -> str:
        """Return the last `n` lines of the log."""
        return log_tail(self.log, n)

    def _finish(self) -> None:
        ended = self._read_event()
        if "status" in ended:
            self._status = int(ended["status"])
        else:
            # The supervisor itself was killed: the child died with it, and left its traces.
            supervisor.kill_group(self.pid)
            supervisor.remove_leftovers(self._command.shared_memory_prefix, self._scratch)
            self._status = self._supervisor.returncode
        self._close()

    def _read_event(self) -> dict[str, Any]:
        assert self._supervisor.stdout is not None
        event: dict[str, Any] = json.loads(self._supervisor.stdout.readline() or "{}")
        return event

    def _close(self) -> None:
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            assert pipe is not None
            # What could not be written before the supervisor ended is tried once more.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def log_tail(log: Path, n: int = 20) -> str:
    """Return the last `n` lines of a log file, empty when there is none."""
    try:
        with log.open("rb") as file:
            # Tables of a starting Triton have long lines; this is ample for them.
            file.seek(max(0, log.stat().st_size - 1024 * n))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-n:])
