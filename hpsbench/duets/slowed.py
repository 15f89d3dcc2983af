"""Servers slowed by a known share: equal processes, of which one is asked for more work.

A small Python model works for as many steps as a request says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpsbench import stats
from hpsbench.config import ServerConfig
from hpsbench.duets.benchmarks import DuetBenchmark
from hpsbench.duets.decision import BASELINE, CANDIDATE
from hpsbench.duets.launches import DuetLaunch, DuetSession
from hpsbench.duets.pairs import NAMES, Contender, ServedPair, fresh_pair
from hpsbench.duets.session import Pair
from hpsbench.errors import ConfigError
from hpsbench.load.client import Tensor
from hpsbench.load.interleaved import Interleaved, ParticipantRun
from hpsbench.ratios import Statistic
from hpsbench.servers.triton import TritonServer

#: What a request shall take, of which the model works most.
REQUEST_NS = 2_000_000
MODEL = "hpsbench_selftest"
BENCHMARK = DuetBenchmark(name=MODEL, model=MODEL)

_CALIBRATING_STEPS = (100, 300)
_CALIBRATING_REQUESTS = 60
#: Launches differ by some 4%.
_CALIBRATING_LAUNCHES = 8
_CONFIG = """\
backend: "python"
max_batch_size: 0
input [{ name: "steps" data_type: TYPE_INT32 dims: [ 1 ] }]
output [{ name: "sum" data_type: TYPE_FP32 dims: [ 1 ] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
_MODEL_PY = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, arguments):
        rng = np.random.default_rng(1)
        self.rows = rng.random((20_000, 128), dtype=np.float32)
        # So few that they stay in a cache: then every step takes as long as the others.
        self.keys = rng.integers(0, len(self.rows), (16, 32))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        steps = int(pb_utils.get_input_tensor_by_name(request, "steps").as_numpy()[0])
        total = 0.0
        for step in range(steps):
            total += float(self.rows[self.keys[step % 16]].sum())
        output = pb_utils.Tensor("sum", np.array([total], np.float32))
        return pb_utils.InferenceResponse([output])
"""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How many steps the baseline's requests ask for, and what one costs here, in nanoseconds."""

    steps: int
    step_ns: float
    request_ns: int

    def slowed(self, share: float) -> int:
        """Return the steps of a request that takes longer by this share of its whole time."""
        return self.steps + round(share * self.request_ns / self.step_ns)


def calibration(
    measured: DuetSession, asked: Mapping[str, int], request_ns: int = REQUEST_NS
) -> Calibration:
    """Return how to make requests of `request_ns`, from a duet of two numbers of steps (`asked`).

    How much longer the candidate takes is read as a comparison reads it, so that what is injected
    is what it will see. Raises ConfigError where more steps took no longer.
    """
    few, many = asked[BASELINE], asked[CANDIDATE]
    q = 10 if measured.steadiest is Statistic.P10 else 50
    short_ns = stats.percentile_ns(measured.baseline_ns, q)
    long_ns = round(short_ns * math.exp(measured.shift(measured.steadiest)))
    step_ns = (long_ns - short_ns) / (many - few)
    if step_ns <= 0:
        raise ConfigError(
            f"{many} steps of work took {long_ns} ns, and {few} took {short_ns} ns",
            hint="see that nothing else keeps this machine busy, and try again",
        )
    # A slow host gets longer requests, rather than requests that hardly work.
    steps = max(few, round(few + (request_ns - short_ns) / step_ns))
    return Calibration(
        steps=steps, step_ns=step_ns, request_ns=round(short_ns + (steps - few) * step_ns)
    )


def write_model(repository: Path, name: str = MODEL) -> None:
    """Write the model that works for as many steps as a request says."""
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(_CONFIG)
    (folder / "1" / "model.py").write_text(_MODEL_PY)


def calibrate(repository: Path, config: ServerConfig, logs: Mapping[str, Path]) -> Calibration:
    """Return how many steps a request of REQUEST_NS takes here, asked as a comparison asks it.

    Servers that are asked in turn find their caches cold, and steps cost more than on one alone.
    Raises ConfigError where requests fail, or more steps take no longer.
    """
    few, many = _CALIBRATING_STEPS
    steps = {BASELINE: few, CANDIDATE: many}
    pair = _pair(repository, config, steps, logs)
    launches = []
    for number in range(1, _CALIBRATING_LAUNCHES + 1):
        loop = Interleaved(
            rounds=1,
            warmup_requests=_CALIBRATING_REQUESTS // 3,
            min_requests=_CALIBRATING_REQUESTS,
            max_requests=_CALIBRATING_REQUESTS,
            measure_s=1e-9,
            seed=number,
        )
        with pair(number) as launched:
            participants = launched.participants(BENCHMARK)
            try:
                asked = loop.run(participants, launched.check_alive)
            finally:
                for participant in participants:
                    participant.close()
        launches.append(
            DuetLaunch(baseline_ns=_all(asked[BASELINE]), candidate_ns=_all(asked[CANDIDATE]))
        )
    return calibration(DuetSession(launches=tuple(launches)), steps)


def _all(run: ParticipantRun) -> tuple[int, ...]:
    records = run.records
    if records.failed:
        raise ConfigError(
            f"{run.name}: {records.failed} of {len(records)} requests failed as they were "
            f"calibrated: {'; '.join(records.messages)}",
            hint="see the servers' logs, beside the file of the self-test",
        )
    return tuple(records.latencies_ns.tolist())


class Recalibrated:
    """A calibration that is made anew every so often: what requests cost drifts with the machine.

    One that is 20% off injects 4% in place of 5%, which half as many decisions find.
    """

    def __init__(self, first: Calibration, again: Callable[[], Calibration], every: int) -> None:
        """Make one `again` after `every` times that it was asked for."""
        self._found, self._again, self._every = first, again, every
        self._asked = 0

    def __call__(self) -> Calibration:
        """Return the calibration for the next pair of servers."""
        if self._asked and self._asked % self._every == 0:
            self._found = self._again()
        self._asked += 1
        return self._found


def _request(steps: int) -> dict[str, Tensor]:
    return {"steps": np.array([steps], np.int32)}


def slowed_pair(
    repository: Path,
    config: ServerConfig,
    found: Calibration,
    share: float,
    logs: Mapping[str, Path],
) -> Pair[ServedPair]:
    """Return pairs of fresh servers whose candidate is slower by this share of a request."""
    steps = {BASELINE: found.steps, CANDIDATE: found.slowed(share)}
    return _pair(repository, config, steps, logs)


def _pair(
    repository: Path, config: ServerConfig, steps: Mapping[str, int], logs: Mapping[str, Path]
) -> Pair[ServedPair]:
    contenders = {
        name: Contender(models=(MODEL,), repository=repository, config=config, log=logs[name])
        for name in NAMES
    }

    def ask(
        name: str, server: TritonServer, benchmark: DuetBenchmark
    ) -> Sequence[Mapping[str, Tensor]]:
        return [_request(steps[name])]

    return lambda number: fresh_pair(contenders, ask, number)
