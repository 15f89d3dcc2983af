"""`hpsbench selftest`: what this host's duets can tell apart, on servers slowed by known shares.

A small Python model works for as many steps as a request says, so the candidate can be asked for a
little more work than the baseline: equal processes, and a known change.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from hpsbench import runs, stats, storage
from hpsbench.config import ServerConfig, environment
from hpsbench.duet import BASELINE, CANDIDATE, DuetPolicy, judge_duet, pooled
from hpsbench.duet_session import LaunchDone, Pair, run_duet
from hpsbench.errors import BaselineError, ConfigError
from hpsbench.gate import EXIT_NO_VERDICT, EXIT_PASSED
from hpsbench.load.client import Tensor, connect
from hpsbench.load.interleaved import Interleaved, Participant
from hpsbench.machine import this_machine
from hpsbench.pairs import NAMES, Contender, fresh_pair
from hpsbench.report import resolution as report
from hpsbench.resolution import (
    CONFIDENCE,
    INJECTED,
    Decision,
    SelfTest,
    mean_change,
    resolutions,
)
from hpsbench.servers.triton import TritonServer, running_triton
from hpsbench.verdict import Outcome
from hpsbench.workspace import workspace

FILE = runs.FOLDER.parent / "selftest.json"
LOGS = runs.FOLDER.parent
SCHEMA_VERSION = 1
SESSIONS, QUICK_SESSIONS = 10, 3
#: What a request shall take, of which the model works most.
REQUEST_NS = 2_000_000
MODEL = "hpsbench_selftest"

_CALIBRATING_STEPS = (100, 300)
_CALIBRATING_REQUESTS = 150
_CONFIG = f"""\
name: "{MODEL}"
backend: "python"
max_batch_size: 0
input [{{ name: "steps" data_type: TYPE_INT32 dims: [ 1 ] }}]
output [{{ name: "sum" data_type: TYPE_FP32 dims: [ 1 ] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""
_MODEL_PY = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, arguments):
        rng = np.random.default_rng(1)
        self.rows = rng.random((20_000, 128), dtype=np.float32)
        self.keys = rng.integers(0, len(self.rows), (256, 32))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        steps = int(pb_utils.get_input_tensor_by_name(request, "steps").as_numpy()[0])
        total = 0.0
        for step in range(steps):
            total += float(self.rows[self.keys[step % 256]].sum())
        output = pb_utils.Tensor("sum", np.array([total], np.float32))
        return pb_utils.InferenceResponse([output])
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--sessions",
        type=int,
        metavar="N",
        help=f"decisions per injected change (default: {SESSIONS}; with --quick {QUICK_SESSIONS})",
    )
    parser.add_argument("--quick", action="store_true", help="a first impression, in minutes")
    parser.set_defaults(command=_command)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How many steps the baseline's requests ask for, and what one costs here, in nanoseconds."""

    steps: int
    step_ns: float
    request_ns: int

    def slowed(self, share: float) -> int:
        """Return the steps of a request that takes longer by this share of its whole time."""
        return self.steps + round(share * self.request_ns / self.step_ns)


def calibration(latency_ns: Mapping[int, int], request_ns: int = REQUEST_NS) -> Calibration:
    """Return how to make requests of `request_ns`, from the latencies at two numbers of steps.

    Raises ConfigError where more steps took no longer, or the host is too slow for any.
    """
    (few, short_ns), (many, long_ns) = sorted(latency_ns.items())
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


def selftest(
    pair: Callable[[float], Pair],
    *,
    sessions: int,
    policy: DuetPolicy,
    on_decision: Callable[[Decision], None] = lambda _: None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Decision]:
    """Return `sessions` decisions for each share of INJECTED, in random order of the shares.

    `pair(share)` gives pairs of servers whose candidate is slower by this share.
    """
    order = random.Random(sessions)
    decisions = []
    for number in range(sessions):
        # Every share meets whatever the machine does in these minutes.
        for position, share in enumerate(order.sample(INJECTED, len(INJECTED))):
            decisions.append(
                _decide(
                    pair(share),
                    share,
                    policy,
                    seed=10 * (number * len(INJECTED) + position),
                    clock_ns=clock_ns,
                    sleep=sleep,
                )
            )
            on_decision(decisions[-1])
    return decisions


def _decide(
    pair: Pair,
    share: float,
    policy: DuetPolicy,
    *,
    seed: int,
    clock_ns: Callable[[], int],
    sleep: Callable[[float], None],
) -> Decision:
    asking_s: list[float] = []

    def on_launch(done: LaunchDone) -> None:
        asking_s.append(done.measure_s)

    begun_ns = clock_ns()
    measured = run_duet(
        pair, policy, seed=seed, on_launch=on_launch, clock_ns=clock_ns, sleep=sleep
    )
    verdict = judge_duet(measured, policy, name=MODEL)
    launches = pooled(measured).launches
    return Decision(
        injected=share,
        outcome=verdict.outcome,
        change=verdict.change,
        change_p50=verdict.change_p50,
        mean_change=None if verdict.outcome is Outcome.INVALID else mean_change(measured[0]),
        ratios_p10=tuple(round(launch.ratio(10), 6) for launch in launches),
        ratios_p50=tuple(round(launch.ratio(50), 6) for launch in launches),
        sessions=len(measured),
        measure_s=sum(asking_s),
        total_s=(clock_ns() - begun_ns) / 1e9,
    )


def stored(machine: str, policy: DuetPolicy, file: Path = FILE) -> SelfTest | None:
    """Return the self-test of this class of machine and policy, None where there is none."""
    try:
        found = storage.read(SelfTest, file, schema_version=SCHEMA_VERSION, restore="run it again")
    except BaselineError:
        return None
    return found if (found.machine, found.policy) == (machine, policy) else None


def write_model(repository: Path) -> None:
    """Write the model that works for as many steps as a request says."""
    folder = repository / MODEL
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(_CONFIG)
    (folder / "1" / "model.py").write_text(_MODEL_PY)


def calibrate(repository: Path, config: ServerConfig) -> Calibration:
    """Start the model once, and return how many steps a request of REQUEST_NS takes here."""
    with running_triton(repository, [MODEL], config, log=_log(BASELINE)) as server:
        loop = Interleaved(
            rounds=1,
            warmup_requests=_CALIBRATING_REQUESTS // 3,
            min_requests=_CALIBRATING_REQUESTS,
            max_requests=_CALIBRATING_REQUESTS,
            measure_s=1e-9,
            seed=1,
        )
        endpoint = server.endpoint(MODEL)
        clients = {steps: connect(endpoint, _request(steps)) for steps in _CALIBRATING_STEPS}
        try:
            asked = loop.run(
                [Participant(name=str(steps), send=c.send) for steps, c in clients.items()],
                server.check_alive,
            )
        finally:
            for client in clients.values():
                client.close()
    return calibration(
        {
            int(name): stats.percentile_ns(run.records.latencies_ns, 10)
            for name, run in asked.items()
        }
    )


def _log(name: str) -> Path:
    return LOGS / f"selftest-{name}.log"


def _request(steps: int) -> dict[str, Tensor]:
    return {"steps": np.array([steps], np.int32)}


def _command(given: argparse.Namespace) -> int:
    sessions = given.sessions or (QUICK_SESSIONS if given.quick else SESSIONS)
    if sessions < 1 or given.sessions == 0:
        raise ConfigError(f"--sessions {given.sessions} measures nothing", hint="give 1 or more")
    LOGS.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        _log(name).write_bytes(b"")
    with workspace(environment().cache_dir / "work") as folder:
        write_model(folder)
        return _measure(folder, sessions)


def _measure(repository: Path, sessions: int) -> int:
    config, policy, machine = ServerConfig(), DuetPolicy(), this_machine().cls
    found = calibrate(repository, config)
    total = sessions * len(INJECTED)
    for line in report.introduction(
        policy, machine=machine, request_ns=found.request_ns, decisions=total
    ):
        print(line, flush=True)
    decisions: list[Decision] = []

    def result() -> SelfTest:
        return SelfTest(
            recorded_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            machine=machine,
            policy=policy,
            request_ns=found.request_ns,
            confidence=CONFIDENCE,
            resolutions=resolutions(decisions),
            decisions=tuple(decisions),
        )

    def on_decision(decision: Decision) -> None:
        decisions.append(decision)
        print(report.decision_line(len(decisions), total, decision), flush=True)
        # An interrupted self-test keeps what it has.
        storage.write_atomically(FILE, storage.encode(result(), schema_version=SCHEMA_VERSION))

    selftest(
        lambda share: _slowed_pair(repository, config, found, share),
        sessions=sessions,
        policy=policy,
        on_decision=on_decision,
    )
    for line in [*report.summary(result()), f"stored {FILE}"]:
        print(line)
    invalid = any(decision.outcome is Outcome.INVALID for decision in decisions)
    return EXIT_NO_VERDICT if invalid else EXIT_PASSED


def _slowed_pair(repository: Path, config: ServerConfig, found: Calibration, share: float) -> Pair:
    steps = {BASELINE: found.steps, CANDIDATE: found.slowed(share)}
    contenders = {
        name: Contender(model=MODEL, repository=repository, config=config, log=_log(name))
        for name in NAMES
    }

    def ask(name: str, server: TritonServer, batch_size: int) -> Sequence[Mapping[str, Tensor]]:
        return [_request(steps[name])]

    return lambda number: fresh_pair(contenders, ask, number)
