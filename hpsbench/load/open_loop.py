"""Requests that leave when they are due, whatever became of those before them.

Each connection has a thread that takes the next arrival, waits for it, sends it by itself and
waits for the answer: nobody hands requests over, so nobody can be late for several of them. A
request that finds every connection waiting leaves late, and its latency counts from when it was
due: waiting in the client is waiting all the same.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np

from hpsbench.errors import RequestError, RequestTimeout
from hpsbench.load.client import Client
from hpsbench.load.interleaved import look_for_death, no_garbage_collection
from hpsbench.load.interrupts import deferred_interrupt
from hpsbench.load.records import MAX_MESSAGES, Nanoseconds, Records

#: A request that leaves later than this after it was due is delayed.
DELAYED_NS = 1_000_000
#: With more requests than this share delayed by the server, it is saturated.
SATURATED_SHARE = 0.01
#: With more than this share delayed by the client, the server did not get the load that was asked
#: for. What is late counts as latency, so fewer make figures worse by chance, never better.
MAX_DELAYED_SHARE = 0.05
#: A client this busy is measuring itself.
MAX_CLIENT_CPU = 0.9
#: So many failures in a row, over all connections, end the run.
GIVE_UP_AFTER = 50

_LEAD_NS = 50_000_000
# What a sleeping thread may oversleep; the rest is spent looking at the clock.
_SPIN_NS = 60_000
_NAP_S = 0.05
_DRAIN_S = 1.0
_PR_SET_TIMERSLACK = 29
_NICE = -15


@dataclass(frozen=True, kw_only=True)
class OpenLoopRun:
    """What became of every request that was due after the warm-up; counts are of requests.

    `delayed_by_server` left late because every connection waited for an answer, and
    `delayed_by_client` although one was free. `unsent` were never sent, because the loop gave up
    (`gave_up` says why). `client_cpu` is the share of one core that this process used, and
    `due_ns` the time in which they were due.
    """

    records: Records
    due_ns: int
    connections: int
    delayed_by_server: int
    delayed_by_client: int
    max_delay_ns: int
    timed_out: int
    unsent: int
    client_cpu: float
    gave_up: str | None = None

    @property
    def delayed(self) -> int:
        """Requests that left late, for whichever reason."""
        return self.delayed_by_server + self.delayed_by_client

    @property
    def saturated(self) -> bool:
        """Whether the server left so many requests waiting that they could not even be sent."""
        return self.delayed_by_server > SATURATED_SHARE * max(1, len(self.records))

    @property
    def invalid(self) -> str | None:
        """Return why the load was not what was asked for, None where it was."""
        requests = len(self.records)
        if not requests:
            return self.gave_up or "no request was due after the warm-up"
        if self.gave_up is not None:
            return self.gave_up
        if not self.saturated and self.delayed_by_client <= MAX_DELAYED_SHARE * requests:
            return None
        late = (
            f"{self.delayed} of {requests} requests left more than {DELAYED_NS / 1e6:g} ms late "
            f"(the worst {self.max_delay_ns / 1e6:.1f} ms)"
        )
        if self.client_cpu > MAX_CLIENT_CPU:
            return f"{late}: the client used {self.client_cpu:.0%} of a core, so it was the limit"
        if self.saturated:
            return (
                f"{late}: all {self.connections} connections waited for answers, so the server is "
                "saturated"
            )
        return f"{late} with connections free: the machine is too busy for the client to keep time"


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Requests due at `arrivals_ns`, int64[n] increasing nanoseconds from the start.

    Those due before `warmup_ns` are sent and not recorded. `connections` bounds how many may be
    unanswered at a time. Raises ValueError where nothing is due after the warm-up.
    """

    arrivals_ns: Nanoseconds
    warmup_ns: int = 0
    connections: int = 64
    clock_ns: Callable[[], int] = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.connections < 1 or not (self.arrivals_ns >= self.warmup_ns).any():
            raise ValueError(
                f"{len(self.arrivals_ns)} requests over {self.connections} connections with "
                f"{self.warmup_ns} ns of warm-up ask nothing"
            )

    def run(
        self, connect: Callable[[], Client], check_alive: Callable[[], None] = lambda: None
    ) -> OpenLoopRun:
        """Send every request when it is due, wait for the last answer, and return what happened.

        `connect` is called once per connection, before the start. `check_alive` is called after
        failed requests; what it raises ends the run, as does any error of a client that is no
        RequestError. Ctrl-C ends it once the requests under way are answered, a second one at once.
        """
        with ExitStack() as stack, no_garbage_collection():
            clients = [stack.enter_context(connect()) for _ in range(self.connections)]
            sending = _Sending(self, check_alive)
            cpu_s = time.process_time()
            sending.run(clients)
            cpu_s = time.process_time() - cpu_s
        return sending.result(cpu_s)


class _Sending:
    """An open loop while it runs: one slot per arrival, each written by one thread."""

    def __init__(self, plan: OpenLoop, check_alive: Callable[[], None]) -> None:
        self._plan, self._check_alive = plan, check_alive
        self._clock_ns = plan.clock_ns
        count = len(plan.arrivals_ns)
        self._turn = itertools.count()
        self._due = [0] * count
        self._taken = [0] * count
        self._sent = [0] * count
        self._received = [0] * count
        self._ok = [False] * count
        self._timed_out = [False] * count
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._messages: list[str] = []
        self._failures_in_a_row = 0
        self._gave_up: str | None = None
        self._errors: list[BaseException] = []
        self._begun_ns = self._ended_ns = 0

    def run(self, clients: Sequence[Client]) -> None:
        self._begun_ns = self._clock_ns() + _LEAD_NS
        self._due = (self._plan.arrivals_ns + self._begun_ns).tolist()
        threads = [
            threading.Thread(target=self._work, args=(client,), daemon=True) for client in clients
        ]
        try:
            with deferred_interrupt(self._stop.set):
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        except BaseException:
            self._stop.set()
            deadline_s = time.monotonic() + _DRAIN_S
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, deadline_s - time.monotonic()))
            raise
        self._ended_ns = self._clock_ns()
        if self._errors:
            raise self._errors[0]

    def _work(self, client: Client) -> None:
        wake_on_time()
        try:
            while not self._stop.is_set():
                index = next(self._turn)
                if index >= len(self._due):
                    return
                self._taken[index] = self._clock_ns()
                if not self._wait_until(self._due[index]):
                    return
                self._ask(client, index)
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()

    def _wait_until(self, due_ns: int) -> bool:
        """Return at `due_ns`, or False as soon as the run is ended."""
        clock_ns = self._clock_ns
        while (left_ns := due_ns - clock_ns() - _SPIN_NS) > 0:
            self._plan.sleep(min(left_ns / 1e9, _NAP_S))
            if self._stop.is_set():
                return False
        while clock_ns() < due_ns:
            pass
        return True

    def _ask(self, client: Client, index: int) -> None:
        sent_ns = self._clock_ns()
        try:
            client.send()
        except RequestError as error:
            self._received[index] = self._clock_ns()
            self._sent[index] = sent_ns
            self._timed_out[index] = isinstance(error, RequestTimeout)
            self._failed(error.problem)
            return
        self._received[index] = self._clock_ns()
        self._sent[index] = sent_ns
        self._ok[index] = True
        self._failures_in_a_row = 0

    def _failed(self, problem: str) -> None:
        with self._lock:
            if problem not in self._messages and len(self._messages) < MAX_MESSAGES:
                self._messages.append(problem)
            self._failures_in_a_row += 1
            give_up = self._failures_in_a_row == GIVE_UP_AFTER
            self._check_alive()
        if give_up:
            self._gave_up = f"{GIVE_UP_AFTER} requests in a row failed: {problem}"
            self._stop.set()
            look_for_death(self._check_alive, self._plan.sleep)

    def result(self, cpu_s: float) -> OpenLoopRun:
        due, taken, sent, received = (
            np.array(times, np.int64)
            for times in (self._due, self._taken, self._sent, self._received)
        )
        counts = self._plan.arrivals_ns >= self._plan.warmup_ns
        was_sent = counts & (sent > 0)
        delay = (sent - due)[was_sent]
        # A free connection takes an arrival before it is due.
        none_was_free = (taken > due)[was_sent]
        late = delay > DELAYED_NS
        last_ns = int(self._plan.arrivals_ns[-1])
        return OpenLoopRun(
            records=Records(
                scheduled_ns=due[was_sent],
                sent_ns=sent[was_sent],
                received_ns=received[was_sent],
                ok=np.array(self._ok, np.bool_)[was_sent],
                messages=tuple(self._messages),
            ),
            due_ns=max(1, last_ns - self._plan.warmup_ns),
            connections=self._plan.connections,
            delayed_by_server=int(np.count_nonzero(late & none_was_free)),
            delayed_by_client=int(np.count_nonzero(late & ~none_was_free)),
            max_delay_ns=int(delay.max()) if len(delay) else 0,
            timed_out=int(np.count_nonzero(np.array(self._timed_out)[was_sent])),
            unsent=int(np.count_nonzero(counts & (sent == 0))),
            client_cpu=cpu_s * 1e9 / max(1, self._ended_ns - self._begun_ns),
            gave_up=self._gave_up,
        )


def wake_on_time() -> None:
    """Let the kernel wake this thread when asked, and not up to 50 us later to save power.

    Where the system lets it (root may), it also goes before a server that computes on every core.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
