"""Batches in parts of few sizes, and stages on a clock: what a model on a GPU goes by."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench.servers.backend.batch_parts import LARGEST, SMALLEST, Part, bucket_of, buckets, parts
from hpsbench.servers.backend.device_dlrm import DeviceDlrm, pieces
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


@given(st.integers(1, LARGEST))
def test_threads_share_the_samples_of_a_part(count: int) -> None:
    found = pieces(count)
    assert 1 <= len(found) <= 4
    assert [i for some in found for i in range(count)[some]] == list(range(count))


def test_after_a_part_that_failed_no_thread_writes_features_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dlrm, begun, ended = object.__new__(DeviceDlrm), [], []
    dlrm._pool = ThreadPoolExecutor(2)

    def stage(part: Part, *_: object) -> Part:
        begun.append(part)
        time.sleep(0.05)
        ended.append(part)
        return part

    monkeypatch.setattr(dlrm, "_stage", stage)
    batch = np.zeros((8 * LARGEST, 1), np.int32)
    with dlrm._pool:
        staged = dlrm._staged_parts(batch, batch.astype(np.float32))
        assert next(iter(staged)).first == 0
        staged.close()  # as an exception of whoever works on the parts does
        assert sorted(p.first for p in begun) == sorted(p.first for p in ended)
        assert len(begun) < 8


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
