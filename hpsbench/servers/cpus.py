"""Shares of the processor for servers that run side by side."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

#: Below it, a share of one CPU would leave a server's threads waiting for each other.
MIN_SHARED_CPUS = 4


def even_shares(available: Collection[int]) -> tuple[frozenset[int], frozenset[int]] | None:
    """Return two disjoint sets of as many CPUs, None where there are too few to share out."""
    cpus = sorted(available)
    half = len(cpus) // 2
    if len(cpus) < MIN_SHARED_CPUS:
        return None
    return frozenset(cpus[:half]), frozenset(cpus[half : 2 * half])


@contextmanager
def on_cpus(share: Collection[int] | None) -> Iterator[None]:
    """Let processes that this thread starts meanwhile run on `share` only; None changes nothing."""
    if share is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
