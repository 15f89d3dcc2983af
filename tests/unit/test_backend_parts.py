"""Batches in parts of few sizes, and stages on a clock: what a model on a GPU goes by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench.servers.backend.batch_parts import LARGEST, SMALLEST, bucket_of, buckets, parts
from hpsbench.servers.backend.stages import StageClock
from hpsbench.servers.statistics import parse_metrics, stage_ns


@given(st.integers(1, 5 * LARGEST))
def test_parts_cover_a_batch_once_and_each_fits_its_bucket(count: int) -> None:
    found = list(parts(count))
    assert [p.first for p in found] == [LARGEST * i for i in range(len(found))]
    assert sum(p.count for p in found) == count
    assert all(0 < p.count <= p.bucket for p in found)
    assert all(p.count == p.bucket == LARGEST for p in found[:-1])
    assert {p.bucket for p in found} <= set(buckets(count))


@pytest.mark.parametrize(
    ("count", "bucket"),
    [(1, 32), (32, 32), (33, 64), (1000, 1024), (16_384, 16_384), (131_072, 16_384)],
)
def test_a_bucket_is_the_next_power_of_two(count: int, bucket: int) -> None:
    assert bucket_of(count) == bucket


def test_buckets_are_few() -> None:
    assert buckets(131_072) == [SMALLEST << n for n in range(10)]
    assert buckets(1) == [SMALLEST]


def test_stages_wait_for_the_device_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = iter([100, 130, 150, 1000, 1001]), []
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(now))
    clock = StageClock(lambda: waits.append(None))
    clock.start()
    clock.mark("lookup")
    clock.mark("lookup")
    assert clock.stage_ns == {"lookup": 50}
    clock.start()
    clock.mark("engine")
    assert clock.stage_ns == {"engine": 1}
    assert len(waits) == 3


def test_stages_of_a_model_are_read_from_the_metrics() -> None:
    text = (
        'hpsbench_stage_ns{model="a",stage="copy in"} 1200\n'
        'hpsbench_stage_ns{stage="lookup",model="a"} 300\n'
        'hpsbench_stage_ns{model="b",stage="lookup"} 7\n'
    )
    assert stage_ns(parse_metrics(text), "a") == {"copy in": 1200, "lookup": 300}
