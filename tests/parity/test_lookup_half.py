"""float16 rows: those of TensorFlow, cast, bit for bit."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lookup_models import Table, write_model

import hpsbench.hps as hps
from hpsbench.hps import session
from hpsbench.hps.op import operations

NUM_ROWS = 300
HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)


def awkward_rows(dim: int) -> np.ndarray:
    """Return rows of all magnitudes: halves, what lies just beside and halfway between them."""
    rng = np.random.default_rng(dim)
    finite = HALVES[np.nan_to_num(np.abs(HALVES), nan=np.inf) < 65504].astype(np.float32)
    values = rng.choice(finite, NUM_ROWS * dim)
    neighbours = np.nextafter(values.astype(np.float16), np.float16(np.inf)).astype(np.float32)
    halfway = (values + neighbours) / 2
    kind = rng.integers(0, 5, values.shape)
    beside = np.nextafter(halfway, np.where(kind == 3, np.inf, -np.inf).astype(np.float32))
    values = np.select([kind == 0, kind == 1, kind == 4], [values, halfway, values * 3e3], beside)
    values[:3] = np.inf, -np.inf, -0.0
    return values.astype(np.float32).reshape(NUM_ROWS, dim)


TABLES = [
    Table(keys=np.arange(NUM_ROWS), rows=awkward_rows(dim), default=default)
    for dim, default in ((128, 0.1), (16, -2.0), (13, 65520.0), (20_000, 1.0))
]


@pytest.fixture(scope="module", autouse=True)
def ps_config_file(tmp_path_factory):
    session.reset()
    path = write_model(tmp_path_factory.mktemp("model"), TABLES)
    hps.Init(ps_config_file=str(path))
    yield path
    session.reset()


def layer(kind, table_id, dtype=tf.float16, **options):
    return kind("m", table_id, TABLES[table_id].rows.shape[1], dtype, **options)


def assert_same_bits(ours, native):
    assert ours.dtype == native.dtype == tf.float16
    np.testing.assert_array_equal(ours.numpy().view(np.uint16), native.numpy().view(np.uint16))


@settings(deadline=None)
@given(
    ids=hnp.arrays(
        np.int64, hnp.array_shapes(max_dims=3, min_side=0), elements=st.integers(0, NUM_ROWS - 1)
    ),
    dtype=st.sampled_from([np.int32, np.int64]),
    table_id=st.sampled_from([0, 1, 2]),
    max_norm=st.none() | st.floats(0.125, 20, width=32),
)
def test_rows_are_those_of_tensorflow_rounded(ids, dtype, table_id, max_norm):
    native = tf.nn.embedding_lookup(TABLES[table_id].rows, ids.astype(dtype), max_norm=max_norm)
    ours = layer(hps.LookupLayer, table_id)(ids.astype(dtype), max_norm=max_norm)
    assert ours.dtype == tf.float16
    np.testing.assert_array_equal(ours, tf.cast(native, tf.float16))  # NaN equals NaN


@pytest.mark.parametrize("batch", [1, 26, 5000])
@pytest.mark.parametrize("table_id", range(len(TABLES)))
def test_batches_of_any_size_are_converted_whole(table_id, batch):
    if table_id == 3:
        batch = min(batch, 40)
    ids = np.random.default_rng(batch).integers(-3, NUM_ROWS + 3, batch)
    native = tf.cast(TABLES[table_id].answer(ids), tf.float16)
    assert_same_bits(layer(hps.LookupLayer, table_id)(ids), native)


def test_a_batch_counts_as_one_lookup_however_it_is_converted():
    before = hps.statistics()["m"]["sparse_embedding0"]
    layer(hps.LookupLayer, 0)(np.arange(-2, 200))
    after = hps.statistics()["m"]["sparse_embedding0"]
    assert after["lookups"] - before["lookups"] == 1
    assert after["keys"] - before["keys"] == 202
    assert after["missing_keys"] - before["missing_keys"] == 2


def test_several_tables_in_one_operation():
    multi = hps.MultiLookupLayer("m", [1, 0, 2], [16, 128, 13], tf.float16)
    ids = [np.random.default_rng(i).integers(0, NUM_ROWS, (700, i)) for i in (1, 2, 3)]
    for table_id, asked, rows in zip((1, 0, 2), ids, multi(ids), strict=True):
        assert_same_bits(rows, tf.cast(tf.gather(TABLES[table_id].rows, asked), tf.float16))


@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn"])
@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_ids_are_combined_before_they_are_rounded(combiner, weighted):
    rng = np.random.default_rng(4)
    rows = np.sort(rng.integers(0, 20, 60))
    indices = np.stack([rows, np.arange(60)], axis=1)
    # From 3 on, since the first row has infinities.
    ids = tf.SparseTensor(indices, rng.integers(3, NUM_ROWS, 60), (20, 60))
    weights = tf.SparseTensor(indices, rng.random(60, np.float32), (20, 60)) if weighted else None
    native = tf.nn.embedding_lookup_sparse(TABLES[1].rows, ids, weights, combiner=combiner)
    ours = layer(hps.SparseLookupLayer, 1)(ids, weights, combiner=combiner)
    native = tf.cast(native, tf.float16)
    np.testing.assert_array_equal(ours, native)
    assert ours.dtype == tf.float16


def test_a_layer_is_made_again_from_its_configuration():
    config = layer(hps.LookupLayer, 0).get_config()
    assert config["emb_vec_dtype"] == "float16"
    again = hps.LookupLayer.from_config(config)
    assert again(np.array([0])).dtype == tf.float16


def test_a_saved_model_keeps_the_type(tmp_path):
    module = tf.Module()
    module.layer = layer(hps.LookupLayer, 1)
    module.ask = tf.function(lambda ids: module.layer(ids), [tf.TensorSpec((None,), tf.int64)])
    tf.saved_model.save(module, str(tmp_path))
    ids = tf.constant([5, 7, -1], tf.int64)
    loaded = tf.saved_model.load(str(tmp_path)).ask(ids)
    assert_same_bits(loaded, tf.cast(TABLES[1].answer([5, 7, -1]), tf.float16))


def test_a_graph_from_before_there_was_a_choice_has_float32_rows():
    operations()
    graph = tf.Graph()
    with graph.as_default():
        ids = tf.constant([3, 4], tf.int64)
        operations().hps_lookup(ids=ids, model_name="m", table_id=1, emb_vec_size=16, name="lookup")
        operations().hps_multi_lookup(
            ids=[ids], model_name="m", table_ids=[1], emb_vec_sizes=[16], name="multi"
        )
    old = graph.as_graph_def()
    for node in old.node:
        if node.name in ("lookup", "multi"):
            del node.attr["Trows"]
    again = tf.Graph()
    with again.as_default():
        tf.import_graph_def(old, name="")
    with tf.compat.v1.Session(graph=again) as running:
        for rows in running.run(["lookup:0", "multi:0"]):
            assert rows.dtype == np.float32
            np.testing.assert_array_equal(rows, TABLES[1].rows[[3, 4]])
