"""What the gate can tell apart on this host: nothing from nothing, and 20% from nothing.

Real servers and real verdicts: one session is the baseline, five more are judged against it, and
five again with a variant that its own `model.py` makes a fifth slower. Takes some ten minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpsbench import runs
from hpsbench.baselines import Baseline, Baselines
from hpsbench.config import Suite
from hpsbench.gate import Selection, SessionGate
from hpsbench.machine import this_machine
from hpsbench.models.build import Build, build_repository
from hpsbench.models.variants import select_variants
from hpsbench.plugin import OPTIONS_KEY
from hpsbench.serving import served_variants
from hpsbench.session import Progress, run_session
from hpsbench.verdict import Outcome, Verdict
from hpsbench.workload import benchmark_id

pytestmark = pytest.mark.server

VARIANTS = ("native_tf", "hps_tf", "hps_ensemble")
SLOWED = "hps_tf"
BATCH_SIZE = 256
SESSIONS = 5
#: Waits inside the model, after each request, for a fifth of the time that the request took.
SLOW_MODEL_PY = """\
import time
from hpsbench.servers.backend import tensorflow_model

class TritonPythonModel(tensorflow_model.TritonPythonModel):
    def execute(self, requests):
        begun = time.perf_counter()
        responses = super().execute(requests)
        until = time.perf_counter() + 0.2 * (time.perf_counter() - begun)
        while time.perf_counter() < until:
            pass
        return responses
"""


@pytest.fixture(scope="module")
def one_batch_size(pytestconfig: pytest.Config) -> Suite:
    suite = pytestconfig.stash[OPTIONS_KEY].suite
    return dataclasses.replace(
        suite, load=dataclasses.replace(suite.load, batch_sizes=(BATCH_SIZE,))
    )


@pytest.fixture(scope="module")
def three_variants(one_batch_size: Suite, work_folder: Path) -> Build:
    return build_repository(one_batch_size, select_variants(VARIANTS), work_folder / "resolution")


@pytest.fixture(scope="module")
def session(
    three_variants: Build, work_folder: Path, progress: Callable[[Progress], None]
) -> Callable[[dict[str, Baseline]], runs.Run]:
    """Measure and judge one whole session, and return its run."""
    suite, machine = three_variants.suite, this_machine()
    plan = {(name, BATCH_SIZE): benchmark_id(suite, name, BATCH_SIZE) for name in VARIANTS}

    def run(stored: dict[str, Baseline]) -> runs.Run:
        measured = run_session(
            suite,
            plan,
            lambda: served_variants(three_variants, log=work_folder / "resolution.log"),
            progress,
        )
        baselines = Baselines(machine=machine.cls, here=stored, elsewhere={})
        gate = SessionGate(suite, baselines, runs.new_run(suite, machine))
        for (name, _), measurement in measured.items():
            gate.judge(f"{Path(__file__).name}::{name}", measurement)
        nothing = Selection(prefixes=[], whole=False, variants=None, batch_sizes=None, failed=[])
        return gate.finish(nothing)

    return run


@pytest.fixture(scope="module")
def stored(session: Callable[[dict[str, Baseline]], runs.Run]) -> dict[str, Baseline]:
    """One session's baselines."""
    return {b.benchmark: b for b in runs.baselines_of(session({}))}


@contextmanager
def slowed(build: Build, variant: str) -> Iterator[None]:
    model = build.repository.version_folder(variant) / "model.py"
    text = model.read_text()
    model.write_text(SLOW_MODEL_PY)
    try:
        yield
    finally:
        model.write_text(text)


def show(title: str, verdicts: list[Verdict], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{title}")
        for verdict in verdicts:
            print(f"  {verdict.outcome.value:<13} {verdict.text}")


def test_an_unchanged_repeat_is_never_a_regression(
    session: Callable[[dict[str, Baseline]], runs.Run],
    stored: dict[str, Baseline],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verdicts = [v for _ in range(SESSIONS) for v in session(stored).verdicts]
    show("unchanged", verdicts, capsys)
    assert len(verdicts) == SESSIONS * len(VARIANTS)
    assert Outcome.REGRESSED not in {v.outcome for v in verdicts}


def test_a_variant_a_fifth_slower_is_always_a_regression(
    three_variants: Build,
    session: Callable[[dict[str, Baseline]], runs.Run],
    stored: dict[str, Baseline],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with slowed(three_variants, SLOWED):
        verdicts = [v for _ in range(SESSIONS) for v in session(stored).verdicts]
    show(f"{SLOWED} 20% slower", verdicts, capsys)
    by_variant = [v.outcome for v in verdicts if f"-{SLOWED}-" in v.benchmark]
    assert by_variant == [Outcome.REGRESSED] * SESSIONS
    others = {v.outcome for v in verdicts if f"-{SLOWED}-" not in v.benchmark}
    assert Outcome.REGRESSED not in others
