"""What was recorded of each request: when it should leave, when it left, when it was answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Nanoseconds: TypeAlias = npt.NDArray[np.int64]

#: Only the first messages are kept: a dead model gives the same one thousands of times.
MAX_MESSAGES = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """Requests in the order they were sent: int64[n] nanoseconds of one clock, and bool[n] `ok`.

    `scheduled_ns` is when a request was due; a closed loop is due when it sends. `messages` are
    the first few different errors. Raises ValueError for arrays of different lengths.
    """

    scheduled_ns: Nanoseconds
    sent_ns: Nanoseconds
    received_ns: Nanoseconds
    ok: npt.NDArray[np.bool_]
    messages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(a) for a in (self.scheduled_ns, self.sent_ns, self.received_ns, self.ok)}
        if len(lengths) != 1:
            raise ValueError(f"records of different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.ok)

    @property
    def latencies_ns(self) -> Nanoseconds:
        """int64[successes]: from *scheduled* to received, so that waiting to be sent counts."""
        return (self.received_ns - self.scheduled_ns)[self.ok]

    @property
    def failed(self) -> int:
        """The number of requests that were not answered properly."""
        return int(len(self) - np.count_nonzero(self.ok))

    @property
    def duration_ns(self) -> int:
        """From the first request sent to the last answer; 0 of no requests."""
        return int(self.received_ns.max() - self.sent_ns.min()) if len(self) else 0

    def sorted_by_sent(self) -> Records:
        """Return the same requests in the order in which they were sent."""
        order = np.argsort(self.sent_ns, kind="stable")
        return Records(
            scheduled_ns=self.scheduled_ns[order],
            sent_ns=self.sent_ns[order],
            received_ns=self.received_ns[order],
            ok=self.ok[order],
            messages=self.messages,
        )

    @staticmethod
    def concatenate(parts: Sequence[Records]) -> Records:
        """Return the requests of all parts, one after the other; none of no parts."""
        recorder = Recorder()
        for part in parts:
            recorder.extend(part)
        return recorder.records()


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedRequests:
    """Answered requests of one participant, int64[n] nanoseconds, and where each one's went.

    `stages_ns` is int64[n, stages], whose rows add up to `latencies_ns`, in the order of
    `hpsbench.servers.traces.STAGES`; None where nothing was traced.
    """

    latencies_ns: Nanoseconds
    stages_ns: Nanoseconds | None


@dataclass
class Recorder:
    """Collects requests one by one, cheaply enough to do so between two of them."""

    _scheduled: list[int] = field(default_factory=list)
    _sent: list[int] = field(default_factory=list)
    _received: list[int] = field(default_factory=list)
    _ok: list[bool] = field(default_factory=list)
    _messages: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._ok)

    def add(self, scheduled_ns: int, sent_ns: int, received_ns: int, error: str | None) -> None:
        """Record one request; `error` is None where it succeeded."""
        self._scheduled.append(scheduled_ns)
        self._sent.append(sent_ns)
        self._received.append(received_ns)
        self._ok.append(error is None)
        if error is not None:
            self._keep_message(error)

    def extend(self, records: Records) -> None:
        """Append what another recorder collected."""
        self._scheduled.extend(records.scheduled_ns.tolist())
        self._sent.extend(records.sent_ns.tolist())
        self._received.extend(records.received_ns.tolist())
        self._ok.extend(records.ok.tolist())
        for message in records.messages:
            self._keep_message(message)

    def records(self) -> Records:
        """Return what was collected so far."""
        return Records(
            scheduled_ns=np.array(self._scheduled, np.int64),
            sent_ns=np.array(self._sent, np.int64),
            received_ns=np.array(self._received, np.int64),
            ok=np.array(self._ok, np.bool_),
            messages=tuple(self._messages),
        )

    def _keep_message(self, message: str) -> None:
        if message not in self._messages and len(self._messages) < MAX_MESSAGES:
            self._messages.append(message)
