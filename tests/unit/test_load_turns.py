"""Whose turn it is: orders, repetitions, rounds and turns, of any numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpsbench.load.schedule import random_orders, repetitions_for, split_rounds, turns


@given(participants=st.integers(0, 8), repetitions=st.integers(0, 50), seed=st.integers(0, 2**32))
def test_every_order_has_each_participant_once(
    participants: int, repetitions: int, seed: int
) -> None:
    orders = random_orders(participants, repetitions, seed=seed)
    assert orders.shape == (repetitions, participants)
    assert (np.sort(orders, axis=1) == np.arange(participants)).all()


def test_each_participant_follows_each_other_equally_often() -> None:
    orders = random_orders(4, 12_000, seed=7)
    pairs = np.stack([orders[:, :-1], orders[:, 1:]], axis=-1).reshape(-1, 2)
    follows = Counter(map(tuple, pairs.tolist()))
    assert len(follows) == 4 * 3
    assert max(follows.values()) < 1.1 * min(follows.values())


@given(
    costs=st.lists(st.integers(0, 10**9), min_size=1, max_size=6),
    budget=st.integers(0, 10**11),
    least=st.integers(1, 100),
    most=st.integers(100, 2000),
)
def test_repetitions_fill_the_budget_within_their_bounds(
    costs: list[int], budget: int, least: int, most: int
) -> None:
    n = repetitions_for(costs, budget_ns=budget, min_requests=least, max_requests=most)
    assert least <= n <= most
    assert n == least or n * sum(costs) <= budget
    assert n == most or (n + 1) * max(1, sum(costs)) > budget


@given(repetitions=st.integers(1, 1000), rounds=st.integers(1, 20))
def test_rounds_share_the_repetitions_evenly(repetitions: int, rounds: int) -> None:
    counts = split_rounds(repetitions, rounds)
    assert sum(counts) == repetitions
    assert len(counts) == min(rounds, repetitions)
    assert max(counts) - min(counts) <= 1


@given(repetitions=st.integers(1, 500), in_a_row=st.integers(1, 60))
def test_turns_share_a_rounds_requests_out(repetitions: int, in_a_row: int) -> None:
    counts = turns(repetitions, in_a_row)
    assert sum(counts) == repetitions
    assert max(counts) <= in_a_row
    assert max(counts) - min(counts) <= 1
    assert len(counts) == -(-repetitions // in_a_row)
