"""Latency over load: every variant at every batch size, at given rates or up to saturation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpsbench.load_curve import LoadCurve
from hpsbench.load_session import measure_load, plan_of
from hpsbench.serving import ServedVariants, request_batches
from hpsbench.workload import benchmark_id, split_row

pytestmark = pytest.mark.server


def test_open_loop_latency(
    loaded: ServedVariants,
    record_load: Callable[[str, str, int, LoadCurve], None],
    variant_name: str,
    batch_size: int,
) -> None:
    suite = loaded.build.suite
    name, keys = split_row(variant_name)
    variant = next(v for v in loaded.build.variants if v.name == name)
    with loaded.client(variant, request_batches(suite, batch_size, keys)) as client:
        curve = measure_load(plan_of(suite), client.another, loaded.check_alive)
    record_load(benchmark_id(suite, variant_name, batch_size), variant_name, batch_size, curve)
