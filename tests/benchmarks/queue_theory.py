"""One server, one request at a time, each for the same time: how long requests stay (M/D/1).

A request waits for those before it, is served for the time D, and leaves. What takes time outside
of that, L, delays a request and nobody else: its way to the server and the answer's back, and the
waking of whoever slept. With a constant L, of which a part may lie before the queue,

    latency = wait + D + L,    wait[0] = 0,  wait[i + 1] = max(0, wait[i] + D - interval[i])

exactly, for a constant delay before the queue shifts all arrivals alike (Lindley's recursion; the
intervals are those between due times). So D is what one request delays the next by: the time
between two departures while the server always has a next one. It is less than the time that a
request which finds the server idle spends in it, because then there is somebody to be woken.
"""

from __future__ import annotations

import numpy as np

from hpsbench.load.records import Nanoseconds, Records


def sojourns(arrivals_ns: Nanoseconds, service_ns: float) -> Nanoseconds:
    """Return int64[n], wait and service of each request at a single server of this D."""
    surplus = np.concatenate([[0.0], service_ns - np.diff(arrivals_ns)])
    walk = np.cumsum(surplus)
    waits = walk - np.minimum.accumulate(walk)
    return np.rint(waits + service_ns).astype(np.int64)


def theory_ns(utilisation: float, service_ns: float, q: float) -> float:
    """Return the `q`-th percentile of the sojourn in an M/D/1 queue, by Erlang's formula."""

    def wait_is_at_most(wait: float) -> float:
        rate = utilisation
        terms = [
            np.exp(rate * (wait - k)) * (-rate * (wait - k)) ** k / _factorial(k)
            for k in range(int(wait) + 1)
        ]
        return float((1 - rate) * sum(terms))

    low, high = 0.0, 100.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if wait_is_at_most(middle) < q / 100 else (low, middle)
    return (1 + low) * service_ns


def occupancy_ns(records: Records, margin_ns: int) -> float:
    """Return D: the median time between answers whose requests had waited for the one before.

    A request waited if it had left `margin_ns` before that answer came; the margin is longer than
    the way there and back. Neither when requests were due nor how long they took is looked at. D is
    one fixed time: a machine that stands still now and then does not stretch the median.
    """
    # One server answers in the order it was asked.
    sent, received = np.sort(records.sent_ns), np.sort(records.received_ns)
    waited = sent[1:] < received[:-1] - margin_ns
    return float(np.median(np.diff(received)[waited]))


def _factorial(k: int) -> float:
    return float(np.prod(np.arange(1, k + 1, dtype=float)))
