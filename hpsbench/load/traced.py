"""Participants asked in turn once more, with the servers' traces on: where their time goes.

Tracing costs time itself, so what is judged is measured before, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from hpsbench.load.interleaved import Interleaved, Participant
from hpsbench.load.records import Records, TracedRequests
from hpsbench.servers.traces import STAGES, RequestTrace, Tracing

#: With this share of the requests not found in the trace, it is of something else.
_MAX_LOST_SHARE = 0.1


def run_traced(
    loop: Interleaved,
    participants: Sequence[Participant],
    check_alive: Callable[[], None] = lambda: None,
) -> dict[str, TracedRequests]:
    """Ask all participants with `loop` and trace those that can be; return what is found by name.

    Raises what the loop raises, and ServerError where a server refuses to trace.
    """
    traced = {id(p.tracing): p.tracing for p in participants if p.tracing is not None}
    if not traced:
        return {}
    # Nothing is judged here, so nobody's counters are needed.
    asked = [replace(p, statistics=None) for p in participants]
    with ExitStack() as stack:
        for tracing in traced.values():
            stack.enter_context(tracing.on())
        runs = loop.run(asked, check_alive)
    records = {p.name: runs[p.name].records for p in participants}
    found = {key: _requests_of(t, key, participants, records) for key, t in traced.items()}
    return {p.name: _run(p, records[p.name], found) for p in participants}


def _requests_of(
    tracing: Tracing, key: int, participants: Sequence[Participant], records: Mapping[str, Records]
) -> list[RequestTrace]:
    asked = sum(len(records[p.name]) for p in participants if id(p.tracing) == key)
    return tracing.read(at_least=asked)


def _run(
    participant: Participant, records: Records, found: Mapping[int, list[RequestTrace]]
) -> TracedRequests:
    if participant.tracing is None or participant.endpoint is None:
        return TracedRequests(latencies_ns=records.latencies_ns, stages_ns=None)
    model = participant.endpoint.model
    requests = [r for r in found[id(participant.tracing)] if r.model == model]
    starts = np.array([r.start_ns for r in requests], np.int64)
    rows, latencies = [], []
    sent, received = records.sent_ns[records.ok], records.received_ns[records.ok]
    for begun_ns, ended_ns in zip(sent.tolist(), received.tolist(), strict=True):
        # Requests go out one at a time, so the one that started meanwhile is this one.
        position = int(np.searchsorted(starts, begun_ns))
        if position < len(requests) and starts[position] <= ended_ns:
            stages = requests[position].stages(begun_ns, ended_ns)
            rows.append([stages[stage] for stage in STAGES])
            latencies.append(ended_ns - begun_ns)
    if len(rows) < (1 - _MAX_LOST_SHARE) * len(sent) or not rows:
        return TracedRequests(latencies_ns=records.latencies_ns, stages_ns=None)
    return TracedRequests(
        latencies_ns=np.array(latencies, np.int64), stages_ns=np.array(rows, np.int64)
    )
