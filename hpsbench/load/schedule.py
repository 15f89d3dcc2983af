"""Who is asked when, and how often: pure functions of seeds, costs and budgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def random_orders(participants: int, repetitions: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return int64[repetitions, participants]; each row is a random order of 0..participants-1.

    Rows are independent: whatever one participant leaves behind in caches meets each of the
    others equally often. Raises ValueError for a negative count.
    """
    if participants < 0 or repetitions < 0:
        raise ValueError(f"negative count: {participants} participants, {repetitions} repetitions")
    rows = np.tile(np.arange(participants, dtype=np.int64), (repetitions, 1))
    return np.random.default_rng(seed).permuted(rows, axis=1)


def repetitions_for(
    costs_ns: Sequence[int], *, budget_ns: int, min_requests: int, max_requests: int
) -> int:
    """Return how often each participant is asked, so that all of them together fill the budget.

    `costs_ns` is what one request costs each participant, `budget_ns` the time for all of them.
    `min_requests` holds even where the budget does not allow it; `max_requests` yields to it.
    """
    wanted = budget_ns // max(1, sum(costs_ns))
    return max(min_requests, min(wanted, max_requests))


def split_rounds(repetitions: int, rounds: int) -> list[int]:
    """Return the repetitions of each round: `rounds` numbers that differ by one at most.

    No round is empty: with fewer repetitions than rounds there are fewer rounds.
    """
    rounds = min(rounds, repetitions)
    return [repetitions // rounds + (i < repetitions % rounds) for i in range(rounds)]
