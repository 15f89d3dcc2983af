"""`SparseLookupLayer` answers as `tf.nn.embedding_lookup_sparse` does, bit for bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_models import seeded_table, write_model

import hpsbench.hps as hps
from hpsbench.errors import HpsError
from hpsbench.hps import session

NUM_ROWS = 60
TABLE = seeded_table(range(NUM_ROWS), 16, default=1.0)
COMBINERS = [None, "mean", "sum", "sqrtn"]


@pytest.fixture(scope="module", autouse=True)
def _initialised(tmp_path_factory):
    session.reset()
    path = write_model(tmp_path_factory.mktemp("model"), [TABLE])
    hps.Init(ps_config_file=str(path), global_batch_size=16)
    yield
    session.reset()


def layer():
    return hps.SparseLookupLayer("m", 0, 16, tf.float32)


def sparse(rows, dtype):
    """Return the SparseTensor of a list of lists."""
    indices = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
    width = max(map(len, rows), default=0)
    return tf.SparseTensor(
        np.array(indices, np.int64).reshape(-1, 2),
        np.array([value for row in rows for value in row], dtype),
        (len(rows), width),
    )


batches = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=5), max_size=6)


@settings(deadline=None)
@given(
    rows=batches,
    dtype=st.sampled_from([np.int32, np.int64]),
    combiner=st.sampled_from(COMBINERS),
    max_norm=st.none() | st.floats(0.5, 8, width=32),
)
def test_it_equals_tensorflow_without_weights(rows, dtype, combiner, max_norm):
    ids = sparse(rows, dtype)
    native = tf.nn.embedding_lookup_sparse(
        TABLE.rows, ids, None, combiner=combiner, max_norm=max_norm
    )
    ours = layer()(ids, None, combiner=combiner, max_norm=max_norm)
    np.testing.assert_array_equal(ours, native)


@settings(deadline=None)
@given(
    rows=batches,
    seed=st.integers(0, 9),
    dtype=st.sampled_from([np.float32, np.float64]),
    combiner=st.sampled_from(COMBINERS),
    max_norm=st.none() | st.floats(0.5, 8, width=32),
)
def test_it_equals_tensorflow_with_weights(rows, seed, dtype, combiner, max_norm):
    rng = np.random.default_rng(seed)
    ids = sparse(rows, np.int64)
    weights = sparse([rng.integers(-2, 3, len(row)) * 0.7 for row in rows], dtype)
    native = tf.nn.embedding_lookup_sparse(
        TABLE.rows, ids, weights, combiner=combiner, max_norm=max_norm
    )
    ours = layer()(ids, weights, combiner=combiner, max_norm=max_norm)
    np.testing.assert_array_equal(ours, native)


def test_a_missing_key_counts_as_the_default():
    ids = sparse([[0, -5], [10**12]], np.int64)
    ours = layer()(ids, None, combiner="sum")
    np.testing.assert_array_equal(ours, [TABLE.rows[0] + 1.0, np.ones(16)])


def test_a_keras_model_takes_sparse_inputs():
    ids = keras.Input((None,), dtype="int64", sparse=True)
    model = keras.Model(ids, layer()(ids, None, combiner="sum"))
    batch = sparse([[1, 2], [3]], np.int64)
    np.testing.assert_array_equal(
        model(batch), tf.nn.embedding_lookup_sparse(TABLE.rows, batch, None, combiner="sum")
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((tf.constant([[1]]), None), "sp_ids is a EagerTensor\n  hint: pass a SparseTensor"),
        ((sparse([[1]], np.int64), tf.constant([1.0])), "sp_weights is a EagerTensor"),
        ((sparse([[1]], np.int64), None, None, "max"), "combiner is 'max'\n  hint: pass mean"),
        ((sparse([[1]], np.float32), None), "ids are float32"),
    ],
)
def test_a_wrong_argument_is_named(arguments, problem):
    with pytest.raises(HpsError, match=problem):
        layer().call(*arguments)
