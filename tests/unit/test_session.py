"""A session over scripted servers, under a clock that moves only when a request is asked."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from hpsbench.config import LoadConfig, Suite, TableConfig
from hpsbench.errors import ConfigError, RequestError, ServerDied
from hpsbench.load.interleaved import Participant
from hpsbench.servers.endpoint import Endpoint
from hpsbench.servers.statistics import LookupCount
from hpsbench.servers.traces import RequestTrace
from hpsbench.session import NUMPY, Progress, SessionPart, needed, reference_of, run_session
from hpsbench.workload import row_of

MS = 1_000_000
COSTS_MS = {"numpy": 5, "native_tf": 10, "hps_tf": 20, "hps_ensemble": 30, "idle": 1}

SUITE = Suite(
    preset="test",
    tables=TableConfig(num_embeddings=10),
    load=LoadConfig(batch_sizes=(1, 4), launches=3, rounds=2, min_requests=10, measure_s=0.001),
)
PLAN = {
    (variant, size): f"latency[{variant}-{size}]"
    for variant in ("native_tf", "hps_tf", "hps_ensemble")
    for size in (1, 4)
}


class FakeHost:
    """Starts servers that take `COSTS_MS` times the batch size, `startup_ms` after being asked."""

    def __init__(self, *, offers: Sequence[str] = tuple(COSTS_MS), startup_ms: int = 1000) -> None:
        self.now_ns = 0
        self.offers, self.startup_ms = offers, startup_ms
        self.started = self.stopped = 0
        self.asked: Counter[tuple[str, int]] = Counter()
        self.open: set[tuple[str, int]] = set()
        self.dead = False
        self.failing: set[tuple[int, str]] = set()

    def clock_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)

    @contextmanager
    def launch(self) -> Iterator[FakeHost]:
        self.started += 1
        self.now_ns += self.startup_ms * MS
        try:
            yield self
        finally:
            self.stopped += 1
            self.now_ns += self.startup_ms * MS // 2

    def lookups(self) -> dict[str, dict[str, LookupCount]]:
        asked = sum(n for (row, _), n in self.asked.items() if row.startswith("hps_tf"))
        missed = sum(n for (row, _), n in self.asked.items() if row == "hps_tf-zipf")
        return {"hps_tf": {"cache": LookupCount(keys=100 * asked, hits=100 * asked - 25 * missed)}}

    def check_alive(self) -> None:
        if self.dead:
            raise ServerDied("triton ended with status -9", hint="read its log")

    def participants(self, batch_size: int, keys: str = "") -> Sequence[Participant]:
        return [self._participant(name, batch_size, keys) for name in self.offers]

    def _participant(self, name: str, batch_size: int, keys: str) -> Participant:
        row = name if name == "numpy" else row_of(name, keys)
        key = row, batch_size
        self.open.add(key)

        def send() -> None:
            self.asked[key] += 1
            self.now_ns += COSTS_MS[name] * batch_size * MS
            if self.dead or (self.started, name) in self.failing:
                raise RequestError(f"{name} refused", hint="none")

        return Participant(name=row, send=send, close=lambda: self.open.discard(key))


def run(host: FakeHost, plan: dict[tuple[str, int], str] = PLAN, **kwargs: object):  # type: ignore[no-untyped-def]
    return run_session(SUITE, plan, host.launch, clock_ns=host.clock_ns, sleep=host.sleep, **kwargs)


def test_every_benchmark_is_measured_on_every_launch() -> None:
    host = FakeHost()
    measurements = run(host)
    assert list(measurements) == list(PLAN)
    assert (host.started, host.stopped) == (3, 3)
    for (variant, size), m in measurements.items():
        assert (m.benchmark, m.variant, m.batch_size) == (PLAN[variant, size], variant, size)
        assert [launch.launch for launch in m.launches] == [1, 2, 3]
        assert {len(launch.latencies_ns) for launch in m.launches} == {10}
        assert {launch.p50_ns for launch in m.launches} == {COSTS_MS[variant] * size * MS}
        assert m.invalid is None


def test_variants_are_compared_with_native_tf_and_native_tf_with_numpy() -> None:
    assert reference_of("hps_tf", "native_tf") == "native_tf"
    assert reference_of("native_tf", "native_tf") == "numpy"
    measurements = run(FakeHost())
    ratios = {m.variant: m.launches[0].ratio_p10 for m in measurements.values()}
    assert ratios == {"native_tf": 2.0, "hps_tf": 2.0, "hps_ensemble": 3.0}
    assert measurements["hps_tf", 4].reference == "native_tf"


def test_only_those_needed_are_asked_and_all_are_closed() -> None:
    host = FakeHost()
    measurements = run(host, {("hps_tf", 4): "one"})
    assert {name for name, _ in host.asked} == {"hps_tf", "native_tf"}
    assert host.open == set()
    assert measurements["hps_tf", 4].interleaved_with == ("native_tf",)


def test_needed_names_variants_in_order_and_references_once() -> None:
    of = functools.partial(needed, reference="native_tf")
    assert of(PLAN, 4) == ("native_tf", "hps_tf", "hps_ensemble", "numpy")
    assert of({("hps_tf", 1): "a", ("hps_ensemble", 4): "b"}, 4) == ("hps_ensemble", "native_tf")
    assert of(PLAN, 5) == ()


def test_other_keys_are_rows_that_are_compared_among_themselves() -> None:
    host = FakeHost()
    plan = {
        (row_of(variant, keys), 4): f"{variant}{keys}"
        for keys in ("", "zipf")
        for variant in ("native_tf", "hps_tf")
    }
    seen: list[Progress] = []
    measurements = run(host, plan, progress=seen.append)
    zipf = measurements["hps_tf-zipf", 4]
    assert (zipf.variant, zipf.reference) == ("hps_tf-zipf", "native_tf-zipf")
    assert zipf.interleaved_with == ("native_tf-zipf", "numpy")
    assert {launch.ratio_p10 for launch in zipf.launches} == {2.0}
    assert measurements["hps_tf", 4].interleaved_with == ("native_tf", "numpy")
    assert {launch.hit_rates["cache"] for launch in zipf.launches} == {0.75}
    assert measurements["hps_tf", 4].launches[0].hit_rates == {"cache": 1.0}
    assert measurements["native_tf", 4].launches[0].hit_rates == {}
    assert [(p.batch_size, p.keys) for p in seen[:3]] == [(None, ""), (4, ""), (4, "zipf")]
    assert reference_of("native_tf-zipf", "native_tf") == "numpy"


def test_launches_and_batch_sizes_are_asked_in_different_orders() -> None:
    seeds = []

    class Spying(FakeHost):
        def participants(self, batch_size: int, keys: str = "") -> Sequence[Participant]:
            self.order: list[str] = []
            seeds.append(self.order)
            return [
                dataclasses.replace(p, send=self.spy(p.name, p.send))
                for p in super().participants(batch_size, keys)
            ]

        def spy(self, name, send):  # type: ignore[no-untyped-def]
            def spied() -> None:
                self.order.append(name)
                send()

            return spied

    run(Spying())
    assert len(seeds) == 6
    assert len({tuple(order) for order in seeds}) == 6


def test_progress_counts_launches_and_batch_sizes_and_tells_what_is_left() -> None:
    seen: list[Progress] = []
    host = FakeHost()
    run(host, progress=seen.append)
    assert [(p.launch, p.batch_size) for p in seen] == [
        (launch, size) for launch in (1, 2, 3) for size in (None, 1, 4)
    ]
    assert {p.launches for p in seen} == {3}
    assert [p.eta_s is None for p in seen] == [True, True] + [False] * 7
    total_s = host.now_ns / 1e9
    # From the second launch on every stage has been seen, and this clock has no noise.
    for p in seen[3:]:
        assert p.eta_s == pytest.approx(total_s - p.elapsed_s, rel=0.01)


def test_a_failed_request_makes_its_benchmarks_invalid_and_no_others() -> None:
    host = FakeHost()
    host.failing = {(2, "hps_tf")}
    measurements = run(host)
    assert measurements["hps_ensemble", 1].invalid is None
    bad = measurements["hps_tf", 1]
    assert bad.invalid is not None
    assert "launch 2: hps_tf was given up after 5 requests in a row failed" in bad.invalid
    assert [launch.launch for launch in bad.launches] == [1, 3]


def test_a_dead_server_ends_the_session_at_once_and_is_stopped() -> None:
    host = FakeHost()

    def die(progress: Progress) -> None:
        host.dead = (progress.launch, progress.batch_size) == (2, 4)

    kept: list[SessionPart] = []
    measurements = run(host, progress=die, on_part=kept.append)
    assert (host.started, host.stopped) == (2, 2)
    assert host.open == set()
    assert sum(n for (_, size), n in host.asked.items() if size == 4) == 15 * 4 + 1
    for (_, size), found in measurements.items():
        assert found.invalid == "launch 2: triton ended with status -9"
        assert [launch.launch for launch in found.launches] == ([1, 2] if size == 1 else [1])
    assert [(part.launch, part.batch_size) for part in kept] == [(1, 1), (1, 4), (2, 1)]
    # What was whole by then is judged.
    host = FakeHost()

    def die_last(progress: Progress) -> None:
        host.dead = (progress.launch, progress.batch_size) == (3, 4)

    found = run(host, progress=die_last)
    assert {m.invalid is None for (_, size), m in found.items() if size == 1} == {True}
    assert {m.invalid for (_, size), m in found.items() if size == 4} == {
        "launch 3: triton ended with status -9"
    }


def test_a_server_that_dies_while_it_starts_is_an_error() -> None:
    host = FakeHost()

    @contextmanager
    def dying() -> Iterator[FakeHost]:
        raise ServerDied("triton exited with 1 before it had loaded hps_tf", hint="")
        yield host

    with pytest.raises(ServerDied):
        run_session(SUITE, PLAN, dying, clock_ns=host.clock_ns, sleep=host.sleep)


def test_a_missing_reference_is_an_error_that_names_it() -> None:
    host = FakeHost(offers=["hps_tf", "idle"])
    with pytest.raises(ConfigError) as caught:
        run(host)
    assert caught.value.problem == (
        "native_tf, hps_ensemble, numpy cannot be asked at batch size 1: "
        "only hps_tf, idle was launched"
    )
    assert host.open == set()


def test_an_empty_plan_and_concurrency_are_refused() -> None:
    with pytest.raises(ConfigError, match="no benchmark was chosen"):
        run(FakeHost(), {})
    suite = dataclasses.replace(SUITE, load=dataclasses.replace(SUITE.load, concurrency=2))
    with pytest.raises(ConfigError, match="concurrency is 2"):
        run_session(suite, PLAN, FakeHost().launch)


class FakeTracing:
    """Knows which requests were made while it was on, and says that all of it was inference."""

    def __init__(self, host: FakeHost) -> None:
        self.host, self.is_on = host, False
        self.requests: list[RequestTrace] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        self.is_on = True
        self.requests.clear()
        yield
        self.is_on = False

    def read(self, *, at_least: int) -> list[RequestTrace]:
        assert len(self.requests) >= at_least
        return self.requests

    def ask(self, model: str, send: Callable[[], None]) -> None:
        begun = self.host.now_ns
        send()
        if self.is_on:
            step = {
                "QUEUE_START": begun, "COMPUTE_START": begun, "COMPUTE_INPUT_END": begun,
                "COMPUTE_OUTPUT_START": self.host.now_ns, "COMPUTE_END": self.host.now_ns,
            }  # fmt: skip
            stamps = {"REQUEST_START": begun}
            self.requests.append(RequestTrace(model=model, timestamps=stamps, steps=(step,)))


class TracedHost(FakeHost):
    """Serves all but the NumPy reference on one server that can be traced."""

    def participants(self, batch_size: int, keys: str = "") -> Sequence[Participant]:
        tracing = FakeTracing(self)

        def traced(plain: Participant) -> Participant:
            if plain.name == NUMPY:
                return plain
            return dataclasses.replace(
                plain,
                send=lambda: tracing.ask(plain.name, plain.send),
                endpoint=Endpoint(
                    http="h", grpc=None, metrics=None, model=plain.name, timed_models=(plain.name,)
                ),
                tracing=tracing,  # type: ignore[arg-type]
            )

        return [traced(p) for p in super().participants(batch_size, keys)]


def test_a_traced_pass_follows_and_does_not_touch_what_is_judged() -> None:
    host, plain = TracedHost(), FakeHost()
    measurements, untraced = run(host), run(plain)
    for key, measurement in measurements.items():
        variant, size = key
        for launch, judged in zip(measurement.launches, untraced[key].launches, strict=True):
            assert launch.latencies_ns == judged.latencies_ns
            assert judged.stages is None
            assert launch.stages is not None
            assert launch.stages.requests >= 10
            cost_ns = COSTS_MS[variant] * size * MS
            assert launch.stages.stages["compute_infer"].typical_ns == cost_ns
            assert launch.stages.whole.typical_ns == cost_ns
            reference_ns = COSTS_MS[reference_of(variant, "native_tf")] * size * MS
            assert launch.stages.reference_ns == reference_ns
    assert host.asked.total() > plain.asked.total()
    assert not host.open


def test_no_time_for_traces_is_no_traced_pass() -> None:
    host = TracedHost()
    load = dataclasses.replace(SUITE.load, traced_s=0.0)
    suite = dataclasses.replace(SUITE, load=load)
    found = run_session(suite, PLAN, host.launch, clock_ns=host.clock_ns, sleep=host.sleep)
    assert {m.stages for m in found.values()} == {None}
