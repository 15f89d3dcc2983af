from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from hpsbench.errors import RequestError, ServerDied
from hpsbench.load.client import Client
from hpsbench.load.closed_loop import ClosedLoop
from hpsbench.load.interleaved import GIVE_UP_AFTER
from hpsbench.load.records import MAX_MESSAGES, Recorder, Records


class FakeClient(Client):
    """Answers after `seconds`, and fails the requests that `fails` says, counted from 0."""

    def __init__(self, seconds: float = 0.0, fails: range = range(0)) -> None:
        self.seconds, self.fails = seconds, fails
        self.sent, self.closed = 0, False

    def send(self) -> None:
        self.sent += 1
        time.sleep(self.seconds)
        if self.sent - 1 in self.fails:
            raise RequestError(f"request {self.sent - 1} refused", hint="none")

    def infer(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def test_one_client_needs_no_thread() -> None:
    threads = set()

    class Watched(FakeClient):
        def send(self) -> None:
            threads.add(threading.current_thread())
            super().send()

    client = Watched()
    records = ClosedLoop(warmup_requests=3, min_requests=50, measure_s=1e-9).run(lambda: client)
    assert threads == {threading.current_thread()}
    assert len(records) == 50
    assert client.sent == 53
    assert client.closed


def test_clients_send_at_the_same_time() -> None:
    clients: list[FakeClient] = []

    def connect() -> FakeClient:
        clients.append(FakeClient(0.005))
        return clients[-1]

    loop = ClosedLoop(concurrency=4, warmup_requests=1, min_requests=40, measure_s=1e-9)
    records = loop.run(connect)
    assert len(clients) == 4
    assert all(client.closed for client in clients)
    assert len(records) == 40
    assert [client.sent for client in clients] == [11] * 4
    assert (np.diff(records.sent_ns) >= 0).all()
    # One after the other they would have taken their latencies' sum.
    assert records.duration_ns < 0.7 * records.latencies_ns.sum()


def test_the_loop_lasts_as_long_as_it_was_told() -> None:
    now = [0]

    class Ticking(FakeClient):
        def send(self) -> None:
            now[0] += 1_000_000

    loop = ClosedLoop(min_requests=1, measure_s=0.1, clock_ns=lambda: now[0])
    assert len(loop.run(Ticking)) == 100


@pytest.mark.parametrize("concurrency", [1, 3])
def test_failed_requests_are_recorded(concurrency: int) -> None:
    loop = ClosedLoop(concurrency=concurrency, warmup_requests=0, min_requests=30, measure_s=1e-9)
    records = loop.run(lambda: FakeClient(fails=range(2, 3)))
    assert len(records) == 30
    assert records.failed == concurrency
    assert records.messages == ("request 2 refused",)


def test_a_client_that_keeps_failing_stops() -> None:
    slept: list[float] = []
    loop = ClosedLoop(measure_s=60, sleep=slept.append)
    records = loop.run(lambda: FakeClient(fails=range(1000)))
    assert len(records) == records.failed == GIVE_UP_AFTER
    assert sum(slept) == pytest.approx(1.0)


def test_a_server_that_is_found_dead_only_later_ends_the_loop_all_the_same() -> None:
    slept: list[float] = []

    def check_alive() -> None:
        if sum(slept) > 0.2:
            raise ServerDied("triton ended", hint="read its log")

    loop = ClosedLoop(measure_s=60, sleep=slept.append)
    with pytest.raises(ServerDied):
        loop.run(lambda: FakeClient(fails=range(1000)), check_alive)


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("fails", [range(1000), range(5, 1000)], ids=["warm-up", "measured"])
def test_a_dead_server_ends_the_loop_at_once(concurrency: int, fails: range) -> None:
    def check_alive() -> None:
        raise ServerDied("triton ended", hint="read its log")

    clients: list[FakeClient] = []

    def connect() -> FakeClient:
        # Only one notices; the others must stop all the same.
        clients.append(FakeClient(0.001, fails=range(0) if clients else fails))
        return clients[-1]

    with pytest.raises(ServerDied):
        ClosedLoop(concurrency=concurrency, measure_s=60).run(connect, check_alive)
    assert all(client.closed for client in clients)


@pytest.mark.parametrize(("concurrency", "measure_s"), [(0, 1.0), (1, 0.0)])
def test_a_loop_that_asks_nothing_is_refused(concurrency: int, measure_s: float) -> None:
    with pytest.raises(ValueError, match="asks nothing"):
        ClosedLoop(concurrency=concurrency, measure_s=measure_s)


def test_latency_counts_from_the_scheduled_time() -> None:
    recorder = Recorder()
    recorder.add(100, 150, 190, None)
    recorder.add(200, 200, 260, "refused")
    recorder.add(300, 300, 310, None)
    records = recorder.records()
    assert records.latencies_ns.tolist() == [90, 10]
    assert (len(records), records.failed, records.duration_ns) == (3, 1, 160)


def test_messages_are_kept_once_and_only_the_first() -> None:
    recorder = Recorder()
    for i in range(20):
        recorder.add(i, i, i, f"error {i // 2}")
    messages = recorder.records().messages
    assert messages == ("error 0", "error 1", "error 2")
    assert len(messages) == MAX_MESSAGES


def test_no_records_are_no_latencies() -> None:
    empty = Records.concatenate([])
    assert (len(empty), empty.failed, empty.duration_ns, len(empty.latencies_ns)) == (0, 0, 0, 0)


def test_records_of_different_lengths_are_refused() -> None:
    one, two = np.zeros(1, np.int64), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="different lengths"):
        Records(scheduled_ns=one, sent_ns=two, received_ns=one, ok=np.ones(1, np.bool_))
