"""What one pytest session gathers, and where the plugin keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hpsbench import gate, runs
from hpsbench.checkpoint import Checkpoint
from hpsbench.config import Suite
from hpsbench.errors import BenchError
from hpsbench.options import BenchOptions
from hpsbench.verdict import Verdict


@dataclass(kw_only=True)
class State:
    """What one pytest session gathers; `gate` is None where no gated test was collected."""

    gate: gate.SessionGate | None = None
    narrowed: bool = False
    without_gpu: int = 0
    failed: set[str] = field(default_factory=set)
    failed_by_gate: set[str] = field(default_factory=set)
    failed_otherwise: bool = False
    progress_shown: bool = False
    run: runs.Run | None = None
    run_path: Path | None = None
    report_path: Path | None = None
    problem: BenchError | None = None
    checkpoint: Checkpoint | None = None
    num_parts: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)


SUITE_KEY = pytest.StashKey[Suite]()
OPTIONS_KEY = pytest.StashKey[BenchOptions]()
STATE_KEY = pytest.StashKey[State]()
CLOCK_KEY = pytest.StashKey[gate.RecordedClock]()
VERDICT_KEY = pytest.StashKey[Verdict]()
