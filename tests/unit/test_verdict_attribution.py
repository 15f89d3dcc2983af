"""What moved, in a verdict's words: the stage of a request, and the tier whose hit rate changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hpsbench import baselines
from hpsbench.baselines import Baseline
from hpsbench.measurements import Measurement
from hpsbench.servers.traces import STAGES
from hpsbench.stages import StageProfile, StageSummary
from hpsbench.verdict import Outcome
from tests.scripted import baseline_of, measurement, verdict

BASELINE = baseline_of(measurement())


def with_stages(given: Measurement, infer_us: int, queue_us: int = 50) -> Measurement:
    """Return the measurement with a traced pass whose requests had these stages."""

    def summary(us: int) -> StageSummary:
        return StageSummary(**dict.fromkeys(StageSummary.__dataclass_fields__, us * 1000))

    times = {**dict.fromkeys(STAGES, 10), "queue": queue_us, "compute_infer": infer_us}
    found = StageProfile(
        requests=50,
        reference_ns=1_000_000,
        whole=summary(sum(times.values())),
        stages={stage: summary(us) for stage, us in times.items()},
    )
    launches = tuple(dataclasses.replace(launch, stages=found) for launch in given.launches)
    return dataclasses.replace(given, launches=launches)


TRACED_BASELINE = baseline_of(with_stages(measurement(), 900))


def test_a_regression_names_the_stage_that_moved() -> None:
    slower = with_stages(measurement(slowdown=1.2), 1100, queue_us=52)
    text = verdict(slower, TRACED_BASELINE).text
    assert "; of +0.20 ms, infer +0.20 ms (+22%)" in text
    assert "queue" not in text


def test_a_gain_names_its_stage_and_a_pass_names_none() -> None:
    faster = with_stages(measurement(slowdown=0.8), 700)
    assert "; of -0.20 ms, infer -0.20 ms (-22%)" in verdict(faster, TRACED_BASELINE).text
    assert "infer" not in verdict(with_stages(measurement(), 950), TRACED_BASELINE).text


@pytest.mark.parametrize(
    ("candidate", "baseline"),
    [
        (measurement(slowdown=1.2), TRACED_BASELINE),
        (with_stages(measurement(slowdown=1.2), 1100), BASELINE),
    ],
    ids=["baseline-only", "candidate-only"],
)
def test_stages_of_one_side_alone_name_nothing(candidate: Measurement, baseline: Baseline) -> None:
    found = verdict(candidate, baseline)
    assert found.outcome is Outcome.REGRESSED
    assert "infer" not in found.text


def with_hit_rates(given: Measurement, *of_launches: dict[str, float]) -> Measurement:
    launches = tuple(
        dataclasses.replace(launch, hit_rates=of_launches[i % len(of_launches)])
        for i, launch in enumerate(given.launches)
    )
    return dataclasses.replace(given, launches=launches)


def test_a_regression_names_the_tier_whose_hit_rate_moved() -> None:
    tiers = {"GPU 0 cache": 0.98, "mapped": 1.0}
    stored = baseline_of(with_hit_rates(measurement(), tiers))
    lower = [{"GPU 0 cache": rate, "mapped": 0.995} for rate in (0.7, 0.73)]
    text = verdict(with_hit_rates(measurement(slowdown=1.2), *lower), stored).text
    assert text.endswith("; hit rate of GPU 0 cache 98.0% -> 71.5%")
    # Beside the stage, and of a change alone.
    both = baseline_of(with_stages(with_hit_rates(measurement(), tiers), 900))
    slower = with_stages(with_hit_rates(measurement(slowdown=1.2), *lower), 1100)
    assert ", infer +0.20 ms (+22%); hit rate of" in verdict(slower, both).text
    assert "hit rate" not in verdict(with_hit_rates(measurement(), *lower), stored).text
    # Where one side does not tell, nobody knows what moved.
    assert "hit rate" not in verdict(slower, TRACED_BASELINE).text
    assert "hit rate" not in verdict(measurement(slowdown=1.2), stored).text
    unasked = with_hit_rates(measurement(slowdown=1.2), {"mapped": 1.0, "redis": 0.5})
    assert verdict(unasked, stored).text.endswith("; GPU 0 cache no longer asked, redis now asked")


def test_hit_rates_are_stored_as_means_over_the_launches(tmp_path: Path) -> None:
    measured = with_hit_rates(measurement(), {"cache": 0.5, "mapped": 1.0}, {"cache": 0.7})
    (path,) = baselines.update(tmp_path, [baseline_of(measured)])
    (run,) = baselines.load_one(path).runs
    assert run.hit_rates == pytest.approx({"cache": 0.6, "mapped": 1.0})


def test_stages_survive_being_stored(tmp_path: Path) -> None:
    (path,) = baselines.update(tmp_path, [TRACED_BASELINE])
    assert baselines.load_one(path) == TRACED_BASELINE
    # As the first version of the file had it.
    content = json.loads(path.read_text("utf-8"))
    content["schema_version"] = 1
    for run in content["runs"]:
        del run["stages"], run["hit_rates"]
    path.write_text(json.dumps(content))
    assert baselines.load_one(path) == BASELINE
