"""Which stage is named, in words that a reader can act on."""

from __future__ import annotations

import dataclasses

import pytest

from hpsbench.attribution import attribute, attribute_side_by_side, in_words
from hpsbench.servers.traces import STAGES
from hpsbench.stages import StageProfile, StageSummary

BEFORE_US = {
    "queue": 50, "compute_input": 20, "compute_infer": 1800, "compute_output": 30, "overhead": 100,
}  # fmt: skip


def profile(reference_us: int = 1000, /, **moved_us: int) -> StageProfile:
    def summary(us: int) -> StageSummary:
        return StageSummary(**dict.fromkeys(StageSummary.__dataclass_fields__, us * 1000))

    stages = {stage: BEFORE_US[stage] + moved_us.get(stage, 0) for stage in STAGES}
    return StageProfile(
        requests=50,
        reference_ns=reference_us * 1000,
        whole=summary(sum(stages.values())),
        stages={stage: summary(us) for stage, us in stages.items()},
    )


def said(change: float, **moved_us: int) -> str:
    return in_words(attribute(profile(), profile(**moved_us)), change)


def test_the_stage_that_moved_is_named() -> None:
    assert said(0.2, compute_infer=400) == "of +0.40 ms, infer +0.40 ms (+22%)"


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("queue", "queue +0.40 ms (+800%)"),
        ("compute_input", "compute input +0.40 ms (+2000%)"),
        ("compute_output", "compute output +0.40 ms (+1333%)"),
        ("overhead", "outside the models +0.40 ms (+400%)"),
    ],
)
def test_every_stage_has_words(stage: str, words: str) -> None:
    assert said(0.2, **{stage: 400}) == f"of +0.40 ms, {words}"


def test_stages_that_moved_with_it_follow_and_small_ones_do_not() -> None:
    assert said(0.2, compute_infer=300, queue=100, overhead=5) == (
        "of +0.41 ms, infer +0.30 ms (+17%), queue +0.10 ms (+200%)"
    )


def test_a_stage_that_moved_against_it_is_named_too() -> None:
    assert said(0.1, compute_infer=300, overhead=-60) == (
        "of +0.24 ms, infer +0.30 ms (+17%), outside the models -0.06 ms (-60%)"
    )


def test_a_gain_is_named_alike() -> None:
    assert said(-0.2, compute_infer=-400, queue=10) == "of -0.39 ms, infer -0.40 ms (-22%)"


@pytest.mark.parametrize("moved_us", [0, 20, -400])
def test_traced_requests_that_do_not_show_the_change_name_no_stage(moved_us: int) -> None:
    change = moved_us / sum(BEFORE_US.values())
    expected = f"no stage tells: the traced requests took {change:+.1%}"
    assert said(0.2, compute_infer=moved_us) == expected


def test_a_drift_that_the_reference_shares_is_no_movement() -> None:
    def slower(given: StageProfile, by: float) -> StageProfile:
        return dataclasses.replace(
            given,
            reference_ns=round(given.reference_ns * by),
            stages={
                name: dataclasses.replace(s, typical_ns=round(s.typical_ns * by))
                for name, s in given.stages.items()
            },
        )

    found = attribute(profile(), slower(profile(compute_input=100), 1.5))
    assert in_words(found, 0.05) == "of +0.15 ms, compute input +0.15 ms (+500%)"
    assert found.before_ns == pytest.approx(3_000_000)
    # Side by side there is no drift to take out.
    assert attribute_side_by_side(profile(), slower(profile(), 1.5)).whole_ns == 1_000_000


def test_a_stage_that_was_not_there_before_has_no_percentage() -> None:
    before = profile(queue=-50)
    found = attribute(before, profile(queue=350))
    assert in_words(found, 0.2) == "of +0.40 ms, queue +0.40 ms"


def test_small_movements_keep_their_digits() -> None:
    assert said(0.004, compute_infer=8) == "of +0.0080 ms, infer +0.0080 ms (+0%)"


def test_parts_add_up() -> None:
    found = attribute(profile(), profile(1200, queue=7, compute_infer=-3, overhead=90))
    assert sum(m.moved_ns for m in found.movements) == pytest.approx(found.whole_ns)
