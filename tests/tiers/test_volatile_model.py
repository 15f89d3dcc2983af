"""The volatile tier against a model of it: lookups, inserts, evictions and updates in any order."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hpsbench.hps.native.tiers import (
    Tier,
    TierOptions,
    VolatileOptions,
    preload,
    refresh,
    tier_facts,
    tier_keys,
    update,
)
from tests.tiers.native_tables import DEFAULT, ask, native_model

NUM_FILE_KEYS = 40
keys = st.lists(st.integers(-5, 60), min_size=1, max_size=24)


@dataclass
class Held:
    """What the model knows of a row in the volatile tier."""

    uses: int
    last_use: int


class VolatileTable(RuleBasedStateMachine):
    """One partition, so that the model can tell how much is evicted; rows have 3 values."""

    @initialize(
        policy=st.sampled_from(["evict_random", "evict_least_used", "evict_oldest"]),
        margin=st.integers(1, 12),
        share=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
        cache_missed=st.booleans(),
    )
    def load(self, policy, margin, share, cache_missed):
        self.folder = Path(tempfile.mkdtemp())
        self.rows = np.arange(NUM_FILE_KEYS * 3, dtype=np.float32).reshape(-1, 3)
        bounds = VolatileOptions(
            num_partitions=1, overflow_margin=margin, overflow_policy=policy,
            overflow_resolution_target=share,
        )  # fmt: skip
        options = TierOptions(volatile=bounds, cache_missed=cache_missed)
        self.native = native_model(self.folder, range(NUM_FILE_KEYS), self.rows, options)
        self.margin, self.target, self.policy = margin, int(share * margin), policy
        self.cache_missed = cache_missed
        self.truth = dict(enumerate(self.rows))
        self.held: dict[int, Held] = {}
        self.now = self.evicted = 0

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def write(self, new_keys):
        """Add keys to the model, and evict from it what the native table has evicted."""
        self.now += 1
        for key in new_keys:
            self.held.setdefault(key, Held(uses=1, last_use=self.now))
        if len(self.held) <= self.margin:
            return
        left = set(tier_keys(self.native, 0, Tier.VOLATILE).tolist())
        assert left <= set(self.held)
        assert len(left) == self.target
        gone = {key: self.held.pop(key) for key in set(self.held) - left}
        self.evicted += len(gone)
        if self.policy != "evict_random" and left:
            rank = {"evict_least_used": "uses", "evict_oldest": "last_use"}[self.policy]
            assert max(getattr(h, rank) for h in gone.values()) <= min(
                getattr(h, rank) for h in self.held.values()
            )
        for held in self.held.values():
            held.uses //= 2

    @rule(asked=keys)
    def look_up(self, asked):
        before = tier_facts(self.native, 0, Tier.VOLATILE).hits
        answers = ask(self.native, asked)
        expected = [self.truth.get(k, np.full(3, DEFAULT, np.float32)) for k in asked]
        np.testing.assert_array_equal(answers, np.array(expected))
        hits = tier_facts(self.native, 0, Tier.VOLATILE).hits - before
        assert hits == sum(k in self.held for k in asked)
        self.now += 1
        for key in asked:
            if key in self.held:
                self.held[key].uses += 1
                self.held[key].last_use = self.now
        missed = [k for k in asked if k not in self.held and k in self.truth]
        if self.cache_missed:
            self.write(missed)

    @rule(changed=keys, value=st.floats(-9, 9, width=32))
    def update(self, changed, value):
        new_rows = np.array([[value, k, i] for i, k in enumerate(changed)], np.float32)
        update(self.native, 0, np.array(changed, np.int64), new_rows)
        self.truth |= dict(zip(changed, new_rows, strict=True))
        self.write(changed)

    @rule(wanted=keys)
    def preload(self, wanted):
        preload(self.native, 0, np.array(wanted, np.int64))
        self.write([k for k in wanted if k in self.truth])

    @rule()
    def refresh(self):
        refresh(self.native, 0)

    @invariant()
    def it_holds_what_the_model_holds(self):
        if not hasattr(self, "native"):
            return
        facts = tier_facts(self.native, 0, Tier.VOLATILE)
        assert set(tier_keys(self.native, 0, Tier.VOLATILE).tolist()) == set(self.held)
        assert facts.num_rows == len(self.held) <= self.margin
        assert (facts.evicted, facts.inserted) == (self.evicted, self.evicted + len(self.held))


TestVolatileTable = VolatileTable.TestCase
TestVolatileTable.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize(
    ("policy", "share", "left"),
    [("evict_oldest", 0.625, {4, 5, 6, 7, 8}), ("evict_least_used", 0.5, {0, 1, 2, 3})],
)
def test_the_policy_says_who_goes(tmp_path, policy, share, left):
    bounds = VolatileOptions(
        num_partitions=1, overflow_margin=8, overflow_policy=policy,
        overflow_resolution_target=share,
    )  # fmt: skip
    rows = np.arange(20, dtype=np.float32).reshape(20, 1)
    native = native_model(tmp_path, range(20), rows, TierOptions(volatile=bounds))
    preload(native, 0, np.arange(8))
    for _ in range(3):
        ask(native, [0, 1, 2, 3])
    ask(native, [4, 5, 6, 7])
    preload(native, 0, np.array([8]))
    assert set(tier_keys(native, 0, Tier.VOLATILE).tolist()) == left


def test_rows_are_spread_over_partitions_each_with_its_margin(tmp_path):
    rows = np.arange(20_000, dtype=np.float32).reshape(10_000, 2)
    bounds = VolatileOptions(num_partitions=7, overflow_margin=100)
    native = native_model(tmp_path, range(10_000), rows, TierOptions(volatile=bounds))
    for begin in range(0, 10_000, 10):
        preload(native, 0, np.arange(begin, begin + 10))
    assert 7 * 80 <= tier_facts(native, 0, Tier.VOLATILE).num_rows <= 7 * 100
    np.testing.assert_array_equal(ask(native, range(9_999, -1, -1)), rows[::-1])
