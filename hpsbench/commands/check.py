"""One finding about this machine: how it ended, and what to do."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Status(enum.Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding; `what_to_do` is empty exactly when all is well."""

    name: str
    status: Status
    finding: str
    what_to_do: str = ""

    def __post_init__(self) -> None:
        if (self.status is Status.OK) != (not self.what_to_do):
            raise ValueError(f"{self.name}: {self.status} with {self.what_to_do!r} to do")

    @property
    def ok(self) -> bool:
        """Whether the suite can run nevertheless."""
        return self.status is not Status.FAILED


def ok(name: str, finding: str) -> Check:
    """Return a finding that leaves nothing to do."""
    return Check(name=name, status=Status.OK, finding=finding)


def warning(name: str, finding: str, what_to_do: str) -> Check:
    """Return a finding beside which the suite can run."""
    return Check(name=name, status=Status.WARNING, finding=finding, what_to_do=what_to_do)


def failed(name: str, finding: str, what_to_do: str) -> Check:
    """Return a finding with which the suite cannot run."""
    return Check(name=name, status=Status.FAILED, finding=finding, what_to_do=what_to_do)


def render(checks: Sequence[Check]) -> str:
    """Return a line for each check: status, name, finding, and what to do."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        to_do = f"; {check.what_to_do}" if check.what_to_do else ""
        status = check.status.value.upper() if not check.ok else check.status.value
        lines.append(f"{status:<8} {check.name:<{width}}  {check.finding}{to_do}")
    return "\n".join(lines)
