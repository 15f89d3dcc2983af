"""What an interrupted session had measured, so that one like it in every respect can go on.

A session keeps each part in a file of its own, written atomically, below
`<folder>/<run id>/`: killed anywhere, it loses the part that was being measured. The folder goes
once the run is stored, and every part of it counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpsbench import storage
from hpsbench.config import Suite
from hpsbench.errors import BaselineError, ConfigError
from hpsbench.machine import Machine
from hpsbench.session import Plan, SessionPart
from hpsbench.workload import changes, subject_settings, workload_of

SCHEMA_VERSION = 1
SESSION_FILE = "session.json"
RESTORE_HINT = "remove the folder, and measure again without --resume"
#: What decides how the package behaves; what else lies in its folders does not.
_SOURCES = (".py", ".toml", ".cc", ".h", ".cu", ".cuh")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """All that two sessions must share for one to go on where the other ended."""

    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class InterruptedSession:
    """A session that may not have ended: when it began, and what it is to be like."""

    run_id: str
    recorded_at: str
    identity: Identity
    num_parts: int


def identity_of(suite: Suite, plan: Plan, machine: Machine, *, sources: Path) -> Identity:
    """Return what a session's parts depend on; `sources` is the folder of the package's code."""
    load = {f"load.{k}": v for k, v in dataclasses.asdict(suite.load).items()}
    settings = {
        "preset": suite.preset,
        "benchmarks": ", ".join(sorted(plan.values())),
        **workload_of(suite).settings,
        **load,
        **subject_settings(suite),
        "machine": machine.cls,
        **{f"machine.{k}": v for k, v in machine.fingerprint.items()},
        **machine.versions,
        "code": _digest(sources),
    }
    return Identity(settings={name: str(value) for name, value in settings.items()})


def _digest(sources: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in sources.rglob("*") if p.suffix in _SOURCES):
        digest.update(f"{path.relative_to(sources)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Checkpoint:
    """The parts of one session, on disk as long as its run is not stored."""

    def __init__(self, folder: Path, session: InterruptedSession) -> None:
        self._folder = folder / session.run_id
        self._session = session

    @property
    def session(self) -> InterruptedSession:
        return self._session

    @property
    def num_kept(self) -> int:
        """How many parts are on disk."""
        return len(self._files())

    @property
    def is_whole(self) -> bool:
        """Whether every part is on disk, so that nothing is left to go on with."""
        return self.num_kept == self._session.num_parts

    def keep(self, part: SessionPart) -> None:
        """Store a part that counts; one with a problem is better measured again.

        Raises BaselineError when it cannot be written.
        """
        if not part.is_sound:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            session = self._folder / SESSION_FILE
            if not session.exists():
                _write(session, self._session)
            keys = f"-{part.keys}" if part.keys else ""
            _write(self._folder / f"launch-{part.launch}{keys}-b{part.batch_size}.json", part)
        except OSError as error:
            raise BaselineError(
                f"cannot keep what was measured in {self._folder}: {error.strerror or error}",
                hint="make room there, and go on with --resume",
            ) from error

    def parts(self) -> list[SessionPart]:
        """Return what was kept, by launch. Raises BaselineError for a damaged file."""
        found = [_read(SessionPart, path) for path in self._files()]
        return sorted(found, key=lambda part: (part.launch, part.batch_size, part.keys))

    def discard(self) -> None:
        """Forget the parts: the run that they became is stored."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(p for p in self._folder.glob("*.json") if p.name != SESSION_FILE)


def interrupted(folder: Path) -> list[Checkpoint]:
    """Return the sessions below `folder` that kept something, the newest first.

    What cannot be read is left out.
    """
    found = []
    for path in sorted(folder.glob(f"*/{SESSION_FILE}"), reverse=True):
        try:
            checkpoint = Checkpoint(folder, _read(InterruptedSession, path))
        except BaselineError:
            continue
        if checkpoint.num_kept:
            found.append(checkpoint)
    return found


def like(checkpoints: Iterable[Checkpoint], identity: Identity) -> Checkpoint | None:
    """Return the first that a session of this identity could continue, None where there is none."""
    return next((c for c in checkpoints if c.session.identity == identity), None)


def resumable(folder: Path, identity: Identity) -> Checkpoint:
    """Return the newest interrupted session that can be continued.

    Raises ConfigError where there is none, naming what differs in the newest of others.
    """
    found = interrupted(folder)
    if not found:
        raise ConfigError(
            f"no interrupted session in {folder}", hint="leave out --resume to begin one"
        )
    alike = like(found, identity)
    if alike is None:
        before = found[0].session
        differences = changes(before.identity.settings, identity.settings)
        raise ConfigError(
            f"the interrupted session of {before.recorded_at} was another one: "
            f"{'; '.join(differences)}",
            hint="give the options that it had, or leave out --resume to begin anew",
        )
    return alike


def _write(path: Path, value: object) -> None:
    text = storage.encode(value, schema_version=SCHEMA_VERSION, indent=None)
    storage.write_atomically(path, text)


def _read(cls: type[storage.T], path: Path) -> storage.T:
    return storage.read(cls, path, schema_version=SCHEMA_VERSION, restore=RESTORE_HINT)
