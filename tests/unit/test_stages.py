from __future__ import annotations

import numpy as np

from hpsbench.load.records import TracedRequests
from hpsbench.servers.traces import STAGES
from hpsbench.stages import StageProfile, mean_profile, profile


def traced(rows: list[list[int]]) -> TracedRequests:
    stages = np.array(rows, np.int64)
    return TracedRequests(latencies_ns=stages.sum(axis=1), stages_ns=stages)


def profile_of(rows: list[list[int]], reference_ns: int = 50) -> StageProfile:
    untraced = TracedRequests(latencies_ns=np.full(4, reference_ns), stages_ns=None)
    found = profile(traced(rows), untraced)
    assert found is not None
    return found


def test_typical_stages_add_up_to_the_typical_request() -> None:
    rng = np.random.default_rng(1)
    found = profile_of(rng.exponential(1e6, (101, len(STAGES))).astype(int).tolist())
    parts = sum(s.typical_ns for s in found.stages.values())
    assert abs(parts - found.whole.typical_ns) <= len(STAGES)
    assert abs(found.whole.typical_ns / found.whole.p50_ns - 1) < 0.1
    assert found.requests == 101
    assert found.reference_ns == 50


def test_an_outlier_is_not_typical() -> None:
    rows = [[1, 2, 30, 4, 5]] * 20 + [[1, 2, 30_000, 4, 5]]
    infer = profile_of(rows).stages["compute_infer"]
    assert (infer.typical_ns, infer.p50_ns, infer.p99_ns) == (30, 30, 24_006)


def test_one_request_is_typical_of_itself() -> None:
    assert profile_of([[1, 2, 3, 4, 5]]).whole.typical_ns == 15
    assert profile_of([[1, 2, 3, 4, 5], [3, 2, 3, 4, 5]]).whole.typical_ns == 16


def test_what_was_not_traced_has_no_profile() -> None:
    untraced = TracedRequests(latencies_ns=np.array([5]), stages_ns=None)
    assert profile(untraced, untraced) is None
    nobody = TracedRequests(latencies_ns=np.array([], np.int64), stages_ns=None)
    assert profile(traced([[1, 2, 3, 4, 5]]), nobody) is None
    assert mean_profile([]) is None


def test_launches_count_the_same() -> None:
    one, other = profile_of([[0, 0, 10, 0, 0]] * 100), profile_of([[0, 0, 30, 0, 0]], 70)
    both = mean_profile([one, other])
    assert both is not None
    assert (both.whole.typical_ns, both.stages["compute_infer"].p50_ns) == (20, 20)
    assert (both.requests, both.reference_ns) == (101, 60)
