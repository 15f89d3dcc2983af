"""The main job: the latency of every variant at every batch size, against its baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from hpsbench.measurements import Measurement
from hpsbench.verdict import Verdict

pytestmark = pytest.mark.server


def test_latency(
    measured: Mapping[tuple[str, int], Measurement],
    gate: Callable[[Measurement], Verdict],
    variant_name: str,
    batch_size: int,
) -> None:
    gate(measured[variant_name, batch_size])
