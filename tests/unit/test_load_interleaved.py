"""Interleaving, under a clock that moves only when a request is asked or someone sleeps."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from hpsbench.errors import RequestError, ServerDied
from hpsbench.load.interleaved import (
    GIVE_UP_AFTER,
    Interleaved,
    Participant,
    ParticipantRun,
    no_garbage_collection,
)
from hpsbench.servers.endpoint import Endpoint
from hpsbench.servers.statistics import ModelStatistics

MS = 1_000_000


@dataclass
class FakeMachine:
    """A clock, the order in which participants were asked, and what servers count."""

    now_ns: int = 0
    asked: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    slept_s: float = 0.0

    def clock_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.now_ns += int(seconds * 1e9)

    def statistics(self, model: str) -> ModelStatistics:
        n = self.counts[model]
        return ModelStatistics(
            success_count=n,
            fail_count=0,
            execution_count=n,
            inference_count=n,
            queue_ns=10 * n,
            compute_input_ns=20 * n,
            compute_infer_ns=300 * n,
            compute_output_ns=4 * n,
        )

    def participant(
        self,
        name: str,
        cost_ns: int,
        *,
        models: tuple[str, ...] = (),
        fails: Callable[[int], bool] = lambda _: False,
        read: Callable[[str], ModelStatistics] | None = None,
    ) -> Participant:
        """`fails` is asked with the number of the request, from 0, warm-up included."""

        def send() -> None:
            number = self.asked.count(name)
            self.asked.append(name)
            self.now_ns += cost_ns
            if fails(number):
                raise RequestError(f"{name} refused", hint="none")
            self.counts.update(models)

        endpoint = None
        if models:
            endpoint = Endpoint(
                http="here:1", grpc=None, metrics=None, model=name, timed_models=models
            )
        return Participant(
            name=name, send=send, endpoint=endpoint, statistics=read or self.statistics
        )

    def loop(self, **changes: object) -> Interleaved:
        settings: dict[str, object] = {
            "rounds": 4,
            "warmup_requests": 3,
            "min_requests": 10,
            "measure_s": 0.1,
            "seed": 1,
            "clock_ns": self.clock_ns,
            "sleep": self.sleep,
        }
        return Interleaved(**{**settings, **changes})  # type: ignore[arg-type]


def latencies(run: ParticipantRun) -> list[int]:
    return [int(ns) for ns in run.records.latencies_ns]


def test_what_is_compiled_while_warming_up_does_not_shorten_the_measurement() -> None:
    machine = FakeMachine()

    def send() -> None:
        machine.now_ns += (1 if machine.asked.count("a") >= 6 else 100) * MS
        machine.asked.append("a")

    run = machine.loop(warmup_requests=10).run([Participant(name="a", send=send)])["a"]
    assert set(latencies(run)) == {MS}
    assert len(run.records) == 100


def test_everyone_is_asked_equally_often_and_once_per_repetition() -> None:
    machine = FakeMachine()
    participants = [machine.participant(n, c * MS) for n, c in (("a", 1), ("b", 2), ("c", 3))]
    runs = machine.loop().run(participants)
    # 3 x 100 ms of time at 6 ms a repetition.
    assert {name: len(run.records) for name, run in runs.items()} == {"a": 50, "b": 50, "c": 50}
    measured = machine.asked[9:]
    repetitions = [measured[i : i + 3] for i in range(0, len(measured), 3)]
    assert all(sorted(repetition) == ["a", "b", "c"] for repetition in repetitions)
    assert len({tuple(repetition) for repetition in repetitions}) == 6
    assert latencies(runs["b"]) == [2 * MS] * 50


def test_requests_in_a_row_go_to_one_participant_before_the_next_has_its_turn() -> None:
    machine = FakeMachine()
    participants = [machine.participant(n, MS) for n in "abc"]
    runs = machine.loop(rounds=2, min_requests=20, measure_s=1e-9, in_a_row=4).run(participants)
    assert {len(run.records) for run in runs.values()} == {20}
    in_order = iter(machine.asked[9:])
    # Two rounds of 10 requests.
    for count in (4, 3, 3, 4, 3, 3):
        turn = [[next(in_order) for _ in range(count)] for _ in "abc"]
        assert sorted(turn) == [[name] * count for name in "abc"]


def test_each_round_records_its_share_in_order() -> None:
    machine = FakeMachine()
    run = machine.loop(rounds=4, min_requests=10, measure_s=1e-9).run(
        [machine.participant("a", MS)]
    )["a"]
    assert [len(records) for records in run.rounds] == [3, 3, 2, 2]
    assert (np.diff(run.records.sent_ns) > 0).all()


def test_warm_up_is_not_recorded() -> None:
    machine = FakeMachine()
    run = machine.loop(warmup_requests=7).run([machine.participant("a", 20 * MS)])["a"]
    assert len(machine.asked) == 7 + len(run.records)
    assert run.records.sent_ns[0] == 7 * 20 * MS


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    orders = []
    for seed in (1, 1, 2):
        machine = FakeMachine()
        machine.loop(seed=seed).run([machine.participant(n, MS) for n in "abcd"])
        orders.append(machine.asked)
    assert orders[0] == orders[1] != orders[2]


def test_a_slow_request_is_asked_no_more_than_the_minimum() -> None:
    machine = FakeMachine()
    runs = machine.loop(measure_s=2.0, min_requests=20).run(
        [machine.participant("slow", 180 * MS), machine.participant("quick", MS)]
    )
    assert len(runs["slow"].records) == len(runs["quick"].records) == 22
    assert machine.now_ns < 5e9


def test_garbage_is_not_collected_while_measuring() -> None:
    machine = FakeMachine()
    states = []
    participant = Participant(name="a", send=lambda: states.append(gc.isenabled()))
    machine.loop(measure_s=1e-9).run([participant])
    assert states
    assert not any(states)
    assert gc.isenabled()


def test_garbage_is_collected_once_for_what_runs_within(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(None))
    with no_garbage_collection():
        with no_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    assert len(collected) == 1


def test_counters_are_read_per_round_and_without_the_warm_up() -> None:
    machine = FakeMachine()
    machine.counts["dense"] = 1000
    runs = machine.loop(rounds=2).run(
        [
            machine.participant("single", 10 * MS, models=("single",)),
            machine.participant("ensemble", 10 * MS, models=("lookup", "dense")),
            machine.participant("in process", 10 * MS),
        ]
    )
    assert runs["in process"].steps == ()
    for counts in runs["ensemble"].steps:
        assert set(counts) == {("here:1", "lookup"), ("here:1", "dense")}
        for count in counts.values():
            assert count.statistics.success_count == count.expected == 5
            assert count.statistics.compute_infer_ns == 300 * 5


def test_a_model_that_two_participants_share_counts_for_both() -> None:
    machine = FakeMachine()
    runs = machine.loop(rounds=1).run(
        [
            machine.participant("fp32", 10 * MS, models=("lookup", "dense32")),
            machine.participant("fp16", 10 * MS, models=("lookup", "dense16")),
        ]
    )
    counts = runs["fp32"].steps[0]
    assert counts["here:1", "lookup"].expected == 20
    assert counts["here:1", "lookup"].statistics.success_count == 20
    assert counts["here:1", "dense32"].expected == 10


def test_a_server_that_counts_late_is_waited_for() -> None:
    machine = FakeMachine()

    def read_late(model: str) -> ModelStatistics:
        # The last request is counted 20 ms after its answer.
        late = machine.now_ns < settled_at[0] and machine.asked
        if machine.counts[model] != seen[0]:
            seen[0], settled_at[0] = machine.counts[model], machine.now_ns + 20 * MS
            late = True
        machine.counts[model] -= bool(late)
        reading = machine.statistics(model)
        machine.counts[model] += bool(late)
        return reading

    seen, settled_at = [0], [0]
    runs = machine.loop(rounds=3).run(
        [machine.participant("a", 10 * MS, models=("m",), read=read_late)]
    )
    for counts in runs["a"].steps:
        (count,) = counts.values()
        assert count.statistics.success_count == count.expected
    assert 0.05 < machine.slept_s < 0.2


def test_a_server_that_never_counts_is_not_waited_for_long() -> None:
    machine = FakeMachine()
    participant = machine.participant(
        "a", 10 * MS, models=("m",), read=lambda _: machine.statistics("other")
    )
    runs = machine.loop(rounds=1).run([participant])
    (count,) = runs["a"].steps[0].values()
    assert (count.statistics.success_count, count.expected) == (0, 10)
    assert machine.slept_s < 3


def test_a_failed_request_is_recorded_and_the_rest_goes_on() -> None:
    machine = FakeMachine()
    runs = machine.loop().run(
        [machine.participant("a", MS, fails=lambda i: i == 5), machine.participant("b", MS)]
    )
    assert runs["a"].records.failed == 1
    assert runs["a"].records.messages == ("a refused",)
    assert len(runs["a"].records) == len(runs["b"].records)
    assert len(latencies(runs["a"])) == len(latencies(runs["b"])) - 1
    assert runs["a"].gave_up is None


def test_one_that_keeps_failing_is_given_up_and_the_others_go_on() -> None:
    machine = FakeMachine()
    runs = machine.loop().run(
        [machine.participant("a", MS, fails=lambda i: i >= 9), machine.participant("b", MS)]
    )
    assert runs["a"].gave_up == f"{GIVE_UP_AFTER} requests in a row failed: a refused"
    assert runs["a"].records.failed == GIVE_UP_AFTER
    assert len(runs["b"].records) == 100


def test_one_that_fails_now_and_then_is_not_given_up() -> None:
    machine = FakeMachine()
    runs = machine.loop().run([machine.participant("a", MS, fails=lambda i: i % 2 == 0)])
    assert runs["a"].gave_up is None
    assert runs["a"].records.failed == 50


def test_without_warm_up_one_request_still_tells_the_cost() -> None:
    machine = FakeMachine()
    runs = machine.loop(warmup_requests=0).run([machine.participant("a", MS)])
    assert len(runs["a"].records) == 100
    assert len(machine.asked) == 101


def test_one_that_fails_from_the_first_request_is_given_up_in_the_warm_up() -> None:
    machine = FakeMachine()
    runs = machine.loop(warmup_requests=GIVE_UP_AFTER).run(
        [machine.participant("a", MS, fails=lambda _: True), machine.participant("b", MS)]
    )
    assert runs["a"].gave_up is not None
    assert len(runs["a"].records) == 0
    assert len(runs["b"].records) > 0


@pytest.mark.parametrize("dies_after", [0, 4, 30])
def test_a_dead_server_ends_the_run_at_its_next_failed_request(dies_after: int) -> None:
    machine = FakeMachine()

    def check_alive() -> None:
        if len(machine.asked) > dies_after:
            raise ServerDied("triton ended with status -9", hint="read its log")

    participants = [
        machine.participant(n, MS, fails=lambda _: len(machine.asked) > dies_after) for n in "ab"
    ]
    with pytest.raises(ServerDied):
        machine.loop().run(participants, check_alive)
    assert len(machine.asked) == dies_after + 1
    assert gc.isenabled()


def test_a_server_that_is_found_dead_only_later_ends_the_run_all_the_same() -> None:
    machine = FakeMachine()

    def check_alive() -> None:
        # Its connections broke at once; that its process ended shows 200 ms later.
        if machine.now_ns > 30 * MS + 200 * MS:
            raise ServerDied("triton ended with status -9", hint="read its log")

    participants = [machine.participant(n, 1, fails=lambda i: i >= 9) for n in "ab"]
    with pytest.raises(ServerDied):
        machine.loop().run(participants, check_alive)
    assert machine.now_ns < 500 * MS


def test_a_server_that_dies_unnoticed_ends_the_run_at_the_end_of_the_round() -> None:
    machine = FakeMachine()

    def check_alive() -> None:
        raise ServerDied("triton ended", hint="read its log")

    with pytest.raises(ServerDied):
        machine.loop(rounds=2, min_requests=20, measure_s=1e-9, warmup_requests=1).run(
            [machine.participant("a", MS)], check_alive
        )
    assert len(machine.asked) == 1 + 10


def test_participants_need_different_names() -> None:
    machine = FakeMachine()
    with pytest.raises(ValueError, match="different names"):
        machine.loop().run([machine.participant("a", 1), machine.participant("a", 1)])
