"""A fixed number of clients, each of which sends again as soon as it is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from hpsbench.errors import RequestError
from hpsbench.load.client import Client
from hpsbench.load.interleaved import GIVE_UP_AFTER, look_for_death, no_garbage_collection
from hpsbench.load.records import Recorder, Records


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """`concurrency` requests outstanding at all times, for `measure_s` seconds.

    Each client sends `warmup_requests` that are not recorded, and goes on past the time until it
    has sent its share of `min_requests`. One client needs no thread, and gets none. Raises
    ValueError unless there is at least one client and some time.
    """

    concurrency: int = 1
    warmup_requests: int = 5
    min_requests: int = 20
    measure_s: float = 2.0
    clock_ns: Callable[[], int] = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.measure_s <= 0:
            raise ValueError(
                f"a closed loop of {self.concurrency} clients for {self.measure_s} s asks nothing"
            )

    def run(
        self, connect: Callable[[], Client], check_alive: Callable[[], None] = lambda: None
    ) -> Records:
        """Return the requests of all clients, ordered by the time they were sent.

        `connect` is called once per client; it and what it raises are not measured. A client that
        fails five times in a row stops. `check_alive` is called after each failed request; what it
        raises ends the run, as does any error of a client that is no RequestError.
        """
        with ExitStack() as stack, no_garbage_collection():
            clients = [stack.enter_context(connect()) for _ in range(self.concurrency)]
            loops = [_Loop(self, client, check_alive) for client in clients]
            if len(loops) == 1:
                loops[0].warm_up()
                loops[0].ask(self._deadline_ns())
            else:
                self._run_in_threads(loops)
        records = Records.concatenate([loop.recorder.records() for loop in loops])
        return records.sorted_by_sent()

    def _deadline_ns(self) -> int:
        return self.clock_ns() + int(self.measure_s * 1e9)

    def _run_in_threads(self, loops: Sequence[_Loop]) -> None:
        deadline_ns = 0

        def begin() -> None:
            nonlocal deadline_ns
            deadline_ns = self._deadline_ns()

        # All clients warm up before the first request of any is recorded.
        barrier = threading.Barrier(len(loops), action=begin)
        stop = threading.Event()
        errors: list[BaseException] = []

        def work(loop: _Loop) -> None:
            try:
                loop.warm_up()
                barrier.wait()
                loop.ask(deadline_ns, stop)
            except threading.BrokenBarrierError:
                pass
            except BaseException as error:
                errors.append(error)
                stop.set()
                barrier.abort()

        threads = [threading.Thread(target=work, args=(loop,), daemon=True) for loop in loops]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            stop.set()
            barrier.abort()
            raise
        if errors:
            raise errors[0]


class _Loop:
    """One client of a closed loop, and what was recorded of it."""

    def __init__(self, plan: ClosedLoop, client: Client, check_alive: Callable[[], None]) -> None:
        self.recorder = Recorder()
        self._send, self._check_alive = client.send, check_alive
        self._clock_ns, self._sleep = plan.clock_ns, plan.sleep
        self._warmup_requests = plan.warmup_requests
        self._min_requests = -(-plan.min_requests // plan.concurrency)

    def warm_up(self) -> None:
        for _ in range(self._warmup_requests):
            try:
                self._send()
            except RequestError:
                # Nothing is lost: an error that stays is recorded with the first requests.
                self._check_alive()

    def ask(self, deadline_ns: int, stop: threading.Event | None = None) -> None:
        failures_in_a_row = 0
        while self._clock_ns() < deadline_ns or len(self.recorder) < self._min_requests:
            if stop is not None and stop.is_set():
                return
            sent_ns, error = self._clock_ns(), None
            try:
                self._send()
            except RequestError as refused:
                error = refused.problem
            self.recorder.add(sent_ns, sent_ns, self._clock_ns(), error)
            failures_in_a_row = 0 if error is None else failures_in_a_row + 1
            if error is not None:
                self._check_alive()
            if failures_in_a_row >= GIVE_UP_AFTER:
                look_for_death(self._check_alive, self._sleep)
                return
