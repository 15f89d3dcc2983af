from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from hpsbench.errors import RequestError, RequestTimeout, ServerDied
from hpsbench.load.client import Client
from hpsbench.load.open_loop import DELAYED_NS, GIVE_UP_AFTER, OpenLoop, OpenLoopRun
from hpsbench.load.schedule import constant_arrivals, poisson_arrivals


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Python's own handler, also where the tests were started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class FakeClient(Client):
    """Answers after `seconds`; all connections of one `Served` share its faults."""

    def __init__(self, served: Served) -> None:
        self.served, self.closed = served, False

    def send(self) -> None:
        number = next(self.served.numbers)
        time.sleep(self.served.seconds)
        if number in self.served.fails:
            raise self.served.error

    def infer(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def another(self) -> FakeClient:
        return FakeClient(self.served)

    def close(self) -> None:
        self.closed = True


class Served:
    """Where fake clients connect to."""

    def __init__(
        self,
        seconds: float = 0.0,
        fails: range = range(0),
        error: Exception = RequestError("refused", hint="none"),  # noqa: B008
    ) -> None:
        self.seconds, self.fails, self.error = seconds, fails, error
        self.numbers = iter(range(10**9))
        self.clients: list[FakeClient] = []

    def connect(self) -> FakeClient:
        self.clients.append(FakeClient(self))
        return self.clients[-1]


def send_errors_us(run: OpenLoopRun) -> np.ndarray:
    return (run.records.sent_ns - run.records.scheduled_ns) / 1e3


def test_requests_leave_when_they_are_due() -> None:
    arrivals = poisson_arrivals(400, 3, seed=1)
    run = OpenLoop(arrivals_ns=arrivals).run(Served(0.001).connect)
    errors = send_errors_us(run)
    assert len(errors) == len(arrivals)
    assert errors.min() >= 0
    # Sleeping alone oversleeps by 60 us and more. Whatever else runs here delays the others.
    assert np.percentile(errors, 25) < 30
    scheduled = run.records.scheduled_ns
    np.testing.assert_array_equal(scheduled - scheduled[0], arrivals - arrivals[0])


def test_an_answer_that_is_slow_does_not_hold_back_the_next_request() -> None:
    run = OpenLoop(arrivals_ns=constant_arrivals(100, 0.5)).run(Served(0.1).connect)
    assert len(run.records) == 50
    assert np.median(run.records.sent_ns - run.records.scheduled_ns) < DELAYED_NS
    # One after the other they would take 5 s.
    assert run.records.duration_ns < 2e9
    assert np.median(run.records.latencies_ns) < 0.5e9


def test_waiting_for_a_connection_counts_as_latency_and_is_invalid() -> None:
    # One connection answers 50/s, and 100/s are due: each of 20 waits 10 ms longer than the last.
    loop = OpenLoop(arrivals_ns=constant_arrivals(100, 0.2), connections=1)
    run = loop.run(Served(0.02).connect)
    expected_ms = 20 + 10 * np.arange(20)
    assert (run.records.latencies_ns / 1e6 >= expected_ms - 0.1).all()
    assert run.delayed_by_server == 19
    assert run.saturated
    assert run.invalid is not None
    # A busy machine may delay the first one too.
    assert f"{run.delayed} of 20 requests left more than 1 ms late" in run.invalid
    assert "all 1 connections waited for answers" in run.invalid


def test_a_machine_too_busy_to_wake_the_client_is_invalid() -> None:
    def oversleep(seconds: float) -> None:
        time.sleep(seconds + 0.005)

    loop = OpenLoop(arrivals_ns=constant_arrivals(20, 1), sleep=oversleep)
    run = loop.run(Served().connect)
    # A nap that was to last on may have ended just when the request was due.
    assert 10 < run.delayed_by_client == run.delayed
    assert not run.saturated
    assert run.invalid is not None
    assert "the machine is too busy" in run.invalid


def test_a_client_that_uses_up_its_core_says_so() -> None:
    class Busy(FakeClient):
        def send(self) -> None:
            until = time.thread_time() + 0.01
            while time.thread_time() < until:
                pass

    loop = OpenLoop(arrivals_ns=constant_arrivals(400, 0.5), connections=2)
    run = loop.run(lambda: Busy(Served()))
    assert run.invalid is not None
    # What else runs here takes its share of the cores, so the client may not get the whole of one.
    assert run.client_cpu > 0.3
    assert ("it was the limit" in run.invalid) == (run.client_cpu > 0.9)


def test_warm_up_requests_are_sent_and_not_recorded() -> None:
    served = Served()
    loop = OpenLoop(arrivals_ns=constant_arrivals(100, 1), warmup_ns=400_000_000)
    run = loop.run(served.connect)
    assert next(served.numbers) == 100
    assert len(run.records) == 60
    assert all(client.closed for client in served.clients)


def test_failures_and_timeouts_are_counted() -> None:
    refused = OpenLoop(arrivals_ns=constant_arrivals(200, 0.5)).run(
        Served(fails=range(10, 13)).connect
    )
    assert (refused.records.failed, refused.timed_out) == (3, 0)
    assert refused.records.messages == ("refused",)
    late = RequestTimeout("did not answer within 1 s", hint="none")
    timed_out = OpenLoop(arrivals_ns=constant_arrivals(200, 0.5)).run(
        Served(fails=range(10, 13), error=late).connect
    )
    assert (timed_out.records.failed, timed_out.timed_out) == (3, 3)


def test_a_server_that_keeps_failing_is_given_up() -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(min(seconds, 0.001))

    loop = OpenLoop(arrivals_ns=constant_arrivals(1000, 10), connections=4, sleep=sleep)
    run = loop.run(Served(fails=range(10**6)).connect)
    assert run.invalid == f"{GIVE_UP_AFTER} requests in a row failed: refused"
    assert run.records.failed == len(run.records) <= GIVE_UP_AFTER + 4
    assert run.unsent == 10_000 - len(run.records)


def test_a_dead_server_ends_the_run_at_once() -> None:
    def check_alive() -> None:
        raise ServerDied("triton ended", hint="read its log")

    served = Served(fails=range(10, 1000))
    begun = time.monotonic()
    with pytest.raises(ServerDied):
        OpenLoop(arrivals_ns=constant_arrivals(100, 60)).run(served.connect, check_alive)
    assert time.monotonic() - begun < 5
    assert all(client.closed for client in served.clients)


def test_an_error_of_the_client_itself_ends_the_run() -> None:
    served = Served(fails=range(5, 6), error=ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        OpenLoop(arrivals_ns=constant_arrivals(100, 60)).run(served.connect)


def test_an_interrupt_ends_the_run_and_leaves_no_thread() -> None:
    before = threading.active_count()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        OpenLoop(arrivals_ns=constant_arrivals(100, 60)).run(Served(0.01).connect)
    assert time.monotonic() - begun < 5
    timer.join()
    assert threading.active_count() == before


def test_an_interrupt_while_threads_are_started_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = threading.active_count()
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if threading.active_count() == before + 5:
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        OpenLoop(arrivals_ns=constant_arrivals(100, 60)).run(Served(0.01).connect)
    assert threading.active_count() == before


@pytest.mark.parametrize(("connections", "warmup_ns"), [(0, 0), (1, 10**9)])
def test_a_loop_that_asks_nothing_is_refused(connections: int, warmup_ns: int) -> None:
    with pytest.raises(ValueError, match="ask nothing"):
        OpenLoop(arrivals_ns=constant_arrivals(10, 1), connections=connections, warmup_ns=warmup_ns)
