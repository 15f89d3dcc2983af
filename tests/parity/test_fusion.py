"""Tables that are fused answer as tables apart do, for any keys."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_models import seeded_table, write_model

import hpsbench.hps as hps
from hpsbench.errors import HpsError
from hpsbench.hps import session
from hpsbench.hps.lookup import open_model


def eight_tables(step):
    """Eight tables of two vector sizes, whose keys are ranges (step 1) or scattered."""
    return [
        seeded_table(
            (np.arange(1000) + i * 1000) * step, 16 if i < 5 else 8, default=i - 0.5, seed=i
        )
        for i in range(8)
    ]


@pytest.fixture(scope="module", params=[1, 977], ids=["ranges", "scattered"])
def both(request, tmp_path_factory):
    """Return the tables, and the model of them unfused and fused."""
    tables = eight_tables(request.param)
    folder = tmp_path_factory.mktemp("model")
    apart = open_model(write_model(folder, tables), "m")
    fused = open_model(write_model(folder, tables, fuse=True), "m")
    return tables, apart, fused


@settings(deadline=None)
@given(data=st.data())
def test_fused_lookups_equal_unfused_for_any_key_set(both, data):
    tables, apart, fused = both
    every_key = np.concatenate([table.keys for table in tables]).tolist()
    key = st.sampled_from(every_key) | st.integers(-(2**63), 2**63 - 1)
    keys = [np.array(data.draw(st.lists(key, max_size=20)), np.int64) for _ in tables]
    counts = [len(k) for k in keys]
    answer = np.concatenate([t.answer(k).ravel() for t, k in zip(tables, keys, strict=True)])
    for model in (apart, fused):
        flat = model.lookup_flat(np.concatenate(keys), counts)
        np.testing.assert_array_equal(flat, answer)


def test_a_key_of_a_sibling_gets_the_default_of_the_table_that_was_asked(both):
    tables, _, fused = both
    np.testing.assert_array_equal(fused.lookup(2, tables[3].keys[:5]), np.full((5, 16), 1.5))


def test_tables_of_one_vector_size_share_one_index(both):
    _, apart, fused = both
    if apart.statistics()["sparse_embedding0"]["index_kind"] == "direct":
        # Ranges need no index, so there is none to share.
        assert {t["index_bytes"] for t in fused.statistics().values()} == {0}
        return
    of_one = [t["index_bytes"] for t in apart.statistics().values()]
    shared = [t["index_bytes"] for t in fused.statistics().values()]
    for group in (slice(0, 5), slice(5, 8)):
        assert len(set(shared[group])) == 1
        assert shared[group][0] == pytest.approx(sum(of_one[group]), rel=0.01)


def test_fused_tables_that_overlap_are_refused_with_their_names(tmp_path):
    tables = [seeded_table(range(i * 100, i * 100 + 101), 16) for i in range(3)]
    path = write_model(tmp_path, tables, fuse=True)
    with pytest.raises(HpsError) as caught:
        open_model(path, "m")
    assert "tables sparse_embedding0 and sparse_embedding1 are to be fused" in str(caught.value)
    assert "both hold the key 100" in str(caught.value)
    open_model(write_model(tmp_path, tables), "m")


def test_tables_of_other_vector_sizes_may_share_keys(tmp_path):
    tables = [seeded_table(range(10), dim, seed=dim) for dim in (4, 8)]
    model = open_model(write_model(tmp_path, tables, fuse=True), "m")
    for i, table in enumerate(tables):
        np.testing.assert_array_equal(model.lookup(i, np.arange(12)), table.answer(np.arange(12)))


def test_a_hundred_fused_lookups_run_on_one_inter_op_thread(tmp_path):
    tables = [seeded_table((np.arange(50) + i * 50) * 3, 16, seed=i) for i in range(100)]
    session.reset()
    hps.Init(ps_config_file=str(write_model(tmp_path, tables, fuse=True)))
    keys = np.random.default_rng(0).integers(0, 15_000, (100, 8))
    layers = [hps.LookupLayer("m", i, 16, tf.float32) for i in range(100)]
    for _ in range(2):  # eager: each lookup ends before the next one begins
        eager = [layer(keys[i]) for i, layer in enumerate(layers)]
    function = tf.function(lambda keys: [layer(keys[i]) for i, layer in enumerate(layers)])
    for i, (one, other) in enumerate(zip(eager, function(tf.constant(keys)), strict=True)):
        np.testing.assert_array_equal(one, tables[i].answer(keys[i]))
        np.testing.assert_array_equal(other, one)
    session.reset()
