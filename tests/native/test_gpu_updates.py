"""Rows that change while the GPU cache holds them: nothing stale, nothing torn, nothing lost."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cached_tables import ALWAYS_FETCH, CachedTable, scattered
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hpsbench.hps.native import gpu

pytestmark = pytest.mark.gpu

CACHES = {
    "dynamic 0.0": {"share": 0.0},
    "dynamic 0.1": {"share": 0.1},
    "dynamic 1.0": {"share": 1.0},
    "static": {"cache_type": "static"},
    "uvm": {"cache_type": "uvm", "share": 0.4},
}
KEYS = {"range": np.arange(-300, 1700), "scattered": scattered(2000)}


@pytest.fixture(params=CACHES.values(), ids=list(CACHES))
def cache(request):
    return request.param


@pytest.fixture(params=KEYS.values(), ids=list(KEYS))
def keys(request):
    return request.param


@pytest.mark.parametrize("dim", [13, 32])
def test_updated_rows_are_answered_at_once(tmp_path, cache, keys, dim):
    table = CachedTable(tmp_path, keys, dim=dim, **cache)
    rng = np.random.default_rng(0)
    for size in (1, 100, 2000):
        table.check(rng.choice(keys, 500))
        changed = rng.choice(keys, size, replace=False)
        rows = rng.random((size, dim), dtype=np.float32)
        table.write(changed, rows)
        table.update(changed, rows)
        table.check(rng.permutation(keys))


def test_of_a_key_that_comes_twice_the_last_row_counts(tmp_path, cache):
    table = CachedTable(tmp_path, np.arange(100), **cache)
    table.check([5, 6])
    rows = np.arange(24, dtype=np.float32).reshape(3, 8)
    table.write([5, 6, 5], rows)
    table.update([5, 6, 5], rows)
    np.testing.assert_array_equal(table.ask([5, 6]), rows[[2, 1]])


def test_keys_that_are_new_are_answered_with_their_rows(tmp_path, keys, cache):
    table = CachedTable(tmp_path, keys, **cache)
    rng = np.random.default_rng(1)
    new = np.setdiff1d(rng.integers(-(2**62), 2**62, 6000), keys)
    rng.shuffle(new)
    rows = rng.random((len(new), 8), dtype=np.float32)
    table.check(new)
    for part in (slice(0, 1), slice(1, 1500), slice(1500, 1501), slice(1501, len(new))):
        table.write_any(new[part], rows[part])
        both = np.concatenate([new[part], keys[:3]])
        table.update(both, np.concatenate([rows[part], table.rows[:3]]))
        np.testing.assert_array_equal(table.ask(new[: part.stop]), rows[: part.stop])
        table.check(new[part.stop :])
        table.check(rng.choice(keys, 700))
    assert not table.facts.resident or table.facts.inserted == len(new)
    # And their rows are replaced, too.
    table.write_any(new[:10], rows[10:20])
    table.update(new[:10], rows[10:20])
    np.testing.assert_array_equal(table.ask(new[:20]), rows[[*range(10, 20)] * 2])
    assert not table.facts.resident or table.facts.inserted == len(new)


def test_a_refresh_brings_what_the_host_has_now(tmp_path, cache, keys):
    table = CachedTable(tmp_path, keys, **cache)
    table.check(keys)
    table.write(keys, np.random.default_rng(2).random((len(keys), 8), dtype=np.float32))
    table.refresh()
    table.check(keys)


def test_refreshes_go_round_the_table(tmp_path, cache, keys):
    table = CachedTable(tmp_path, keys, **cache)
    old = table.rows.copy()
    asked = keys[:1000]
    table.check(asked)
    table.write(keys, old + 1)
    stale = []
    for _ in range(4):
        table.refresh(0.3)
        # By a lookup that fetches nothing, since what it does not find must not count.
        got = table.ask(asked)
        stale.append(int((got == old[:1000]).all(axis=1).sum()))
        assert ((got == old[:1000]).all(axis=1) | (got == old[:1000] + 1).all(axis=1)).all()
    assert stale[-1] == 0
    if cache.get("share") != 0.0:
        assert stale[0] > 0


def test_a_refresh_goes_on_with_rows_that_were_added(tmp_path):
    table = CachedTable(tmp_path, np.arange(50), share=1.0)
    new = np.full((1, 8), 7, np.float32)
    table.update([1000], new)
    table.refresh()
    np.testing.assert_array_equal(table.ask([1000]), new)  # no tier has it, so it stays


@pytest.mark.parametrize("threshold", [0.0, ALWAYS_FETCH], ids=["background", "at once"])
@pytest.mark.parametrize("kind", ["dynamic 0.1", "dynamic 1.0", "uvm"])
def test_updates_and_refreshes_under_lookups(tmp_path, kind, threshold):
    """Every row is one number, which only grows: answers are whole, and not older than asked."""
    size, dim = 3000, 64
    options = {"hit_rate_threshold": threshold, "preload": False, **CACHES[kind]}
    table = CachedTable(tmp_path, np.arange(size), dim=dim, default=-1.0, **options)
    table.write(np.arange(size), np.zeros((size, dim), np.float32))
    table.update(np.arange(size), np.zeros((size, dim), np.float32))
    version = np.zeros(size, np.int64)  # what an update that has returned made of each row
    stop = threading.Event()

    def ask(seed):
        rng = np.random.default_rng(seed)
        asked = 0
        while not stop.is_set():
            keys = rng.integers(0, size, int(rng.choice([5, 300, 2000])))
            before = version[keys]
            got = table.ask(keys)
            assert (got == got[:, :1]).all(), "a torn row"
            answered = got[:, 0] != -1
            assert answered.all() or threshold == 0.0
            assert (got[answered, 0] >= before[answered]).all(), "a stale row"
            asked += 1
        return asked

    def refresh():
        while not stop.is_set():
            table.refresh(0.2)

    with ThreadPoolExecutor(5) as pool:
        askers = [pool.submit(ask, seed) for seed in range(4)]
        refresher = pool.submit(refresh)
        rng = np.random.default_rng(9)
        try:
            for number in range(1, 60):
                keys = rng.choice(size, int(rng.choice([1, 50, 1000])), replace=False)
                rows = np.full((len(keys), dim), number, np.float32)
                table.write(keys, rows)
                table.update(keys, rows)
                version[keys] = number
        finally:
            stop.set()
        assert all(asker.result() for asker in askers)
        refresher.result()
    gpu.settle(table.model, 0)
    for _ in range(2):
        got = table.ask(np.arange(size))
        assert ((got == table.rows) | (got == -1)).all()
        assert threshold == 0.0 or (got == table.rows).all()
        gpu.settle(table.model, 0)


def test_a_row_that_changes_on_its_way_into_the_cache_is_not_kept(tmp_path):
    size, dim = 16_000, 512
    options = {"share": 0.9, "preload": False, "max_keys": size}
    table = CachedTable(tmp_path, np.arange(size), dim=dim, **options)
    stop = threading.Event()

    def change_rows():
        rng = np.random.default_rng(1)
        number = 0
        while not stop.is_set():
            keys = rng.choice(size, 300, replace=False)
            rows = np.full((300, dim), number, np.float32)
            table.write(keys, rows)
            table.update(keys, rows)
            number += 1
        return number

    with ThreadPoolExecutor(1) as pool:
        changes = pool.submit(change_rows)
        for seed in range(3):
            table.ask(np.random.default_rng(seed).permutation(size))
        stop.set()
        assert changes.result() > 0
    table.check(np.arange(size))


class CacheMachine(RuleBasedStateMachine):
    """A cache beside a dictionary: whatever happens to rows, they answer alike."""

    folders = iter(range(10**9))
    tmp_path = None
    dim = 4
    key = st.integers(-40, 120)

    @initialize(
        cache=st.sampled_from([
            {"share": 0.05}, {"share": 0.3, "preload": False}, {"share": 0.6}, {"share": 1.0},
            {"cache_type": "static"}, {"cache_type": "uvm", "share": 0.5},
        ]),
        scatter=st.booleans(),
    )  # fmt: skip
    def make(self, cache, scatter):
        folder = self.tmp_path / f"{next(self.folders)}"
        folder.mkdir()
        self.spread = 7919 if scatter else 1
        self.table = CachedTable(folder, np.arange(100) * self.spread, dim=self.dim, **cache)
        self.model = {
            int(k): row.copy() for k, row in zip(self.table.keys, self.table.rows, strict=True)
        }
        self.asked = 0

    def spread_out(self, keys):
        return np.asarray(keys, np.int64) * self.spread

    @rule(keys=st.lists(key, max_size=60), half=st.booleans())
    def look_up(self, keys, half):
        keys = self.spread_out(keys)
        row_type = np.float16 if half else np.float32
        default = np.full(self.dim, self.table.default, np.float32)
        expected = [self.model.get(int(key), default) for key in keys]
        expected = np.asarray(expected, np.float32).reshape(-1, self.dim).astype(row_type)
        np.testing.assert_array_equal(self.table.ask(keys, row_type=row_type), expected)
        self.asked += len(keys)

    @rule(keys=st.lists(st.integers(0, 99), max_size=20), value=st.integers(0, 1000))
    def update(self, keys, value):
        keys = self.spread_out(keys)
        rows = value + np.arange(len(keys) * self.dim, dtype=np.float32).reshape(-1, self.dim)
        self.table.write(keys, rows)
        self.table.update(keys, rows)
        self.model.update({int(k): row for k, row in zip(keys, rows, strict=True)})

    @rule(keys=st.lists(st.integers(100, 119), min_size=1, max_size=5), value=st.integers(0, 99))
    def add(self, keys, value):
        keys = self.spread_out(keys)
        rows = np.full((len(keys), self.dim), value, np.float32)
        self.table.write_any(keys, rows)
        self.table.update(keys, rows)
        self.model.update({int(k): row for k, row in zip(keys, rows, strict=True)})

    @rule(keys=st.lists(st.integers(0, 99), max_size=20), value=st.integers(0, 1000))
    def change_on_the_host_and_refresh(self, keys, value):
        keys = self.spread_out(keys)
        rows = np.full((len(keys), self.dim), value, np.float32)
        self.table.write(keys, rows)
        self.table.refresh()
        self.model.update({int(k): row for k, row in zip(keys, rows, strict=True)})

    @invariant()
    def counters_agree(self):
        if not hasattr(self, "table"):
            return
        facts = self.table.facts
        assert facts.keys == self.asked
        assert facts.hits <= facts.keys
        if not facts.resident:
            assert facts.inserted - facts.evicted <= facts.capacity
            assert facts.unique_hits <= facts.unique_keys <= facts.keys


def test_any_history_of_a_cache(tmp_path):
    CacheMachine.tmp_path = tmp_path
    CacheMachine.TestCase.settings = settings(deadline=None, max_examples=60)
    CacheMachine.TestCase("runTest").runTest()
