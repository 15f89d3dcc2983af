"""An arrival process by its name: what a user chooses, made into a schedule at any rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpsbench.config import ARRIVALS
from hpsbench.errors import ConfigError
from hpsbench.load.records import Nanoseconds
from hpsbench.load.schedule import (
    constant_arrivals,
    poisson_arrivals,
    recorded_arrivals,
    spike_arrivals,
)


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """How requests arrive; `intervals_ns` are those of `recorded`, and of no other kind.

    Raises ConfigError for an unknown kind, or where intervals are missing or too many.
    """

    kind: str = "poisson"
    spike_factor: float = 5.0
    intervals_ns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ARRIVALS:
            raise ConfigError(f"unknown arrivals {self.kind!r}", hint=f"use {', '.join(ARRIVALS)}")
        if (self.kind == "recorded") != bool(self.intervals_ns):
            raise ConfigError(
                f"arrivals {self.kind!r} with {len(self.intervals_ns)} recorded intervals",
                hint="recorded arrivals need a file of intervals, and others take none",
            )

    def times(self, rate_hz: float, duration_s: float, *, seed: int) -> Nanoseconds:
        """Return int64[n] nanoseconds from the start at a mean rate, increasing.

        Raises ValueError unless rate and duration are positive.
        """
        if self.kind == "constant":
            return constant_arrivals(rate_hz, duration_s)
        if self.kind == "spike":
            return spike_arrivals(rate_hz, duration_s, factor=self.spike_factor, seed=seed)
        if self.kind == "recorded":
            return recorded_arrivals(self.intervals_ns, duration_s, rate_hz=rate_hz)
        return poisson_arrivals(rate_hz, duration_s, seed=seed)

    @property
    def recorded_rate_hz(self) -> float | None:
        """The mean rate as recorded, None of the other kinds."""
        if not self.intervals_ns:
            return None
        return 1e9 * len(self.intervals_ns) / sum(self.intervals_ns)


def read_intervals(path: Path) -> tuple[int, ...]:
    """Return the nanoseconds between requests from a file of perf_analyzer's `--request-intervals`.

    One interval a line, whole microseconds. Raises ConfigError where the file is anything else.
    """
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text: {error}", hint="write it as UTF-8") from error
    intervals = []
    for number, line in enumerate(lines, start=1):
        try:
            intervals.append(int(line) * 1000)
        except ValueError as error:
            raise ConfigError(
                f"{path}: line {number} is {line.strip()!r}",
                hint="write one interval a line, in whole microseconds",
            ) from error
    if not intervals or min(intervals) < 0 or not sum(intervals):
        raise ConfigError(
            f"{path} holds no usable intervals", hint="give positive ones, one a line"
        )
    return tuple(intervals)
