"""`LookupLayer` answers as `tf.nn.embedding_lookup` does, bit for bit, and fails with a reason."""

import math
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lookup_models import seeded_table, write_model

import hpsbench.hps as hps
from hpsbench.errors import HpsError
from hpsbench.hps import session

NUM_ROWS = 500
RANGE = seeded_table(range(NUM_ROWS), 128, default=0.5)
SCATTERED = seeded_table(np.arange(NUM_ROWS)[::-1] * 7_919_000_003 - 10**12, 24, default=-2.0)
NEGATIVE = seeded_table([-1, np.iinfo(np.int64).max, np.iinfo(np.int64).min, 0, 3], 16)
TABLES = [RANGE, SCATTERED, NEGATIVE]

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7)


@pytest.fixture(scope="module", autouse=True)
def ps_config_file(tmp_path_factory):
    session.reset()
    path = write_model(tmp_path_factory.mktemp("model"), TABLES)
    assert hps.Init(ps_config_file=str(path), global_batch_size=16) == "OK"
    yield path
    session.reset()


def layer(table_id, **options):
    return hps.LookupLayer("m", table_id, TABLES[table_id].rows.shape[1], tf.float32, **options)


@settings(deadline=None)
@given(
    ids=hnp.arrays(np.int64, shapes, elements=st.integers(0, NUM_ROWS - 1)),
    dtype=st.sampled_from([np.int32, np.int64]),
    max_norm=st.none() | st.floats(0.125, 20, width=32),
)
def test_a_lookup_equals_tensorflow(ids, dtype, max_norm):
    ids = ids.astype(dtype)
    native = tf.nn.embedding_lookup(RANGE.rows, ids, max_norm=max_norm)
    ours = layer(0)(ids, max_norm=max_norm)
    assert ours.shape == (*ids.shape, 128)
    np.testing.assert_array_equal(ours, native)


@settings(deadline=None)
@given(
    data=st.data(),
    table_id=st.sampled_from([0, 1, 2]),
    shape=shapes,
)
def test_missing_negative_and_sparse_keys_are_answered(data, table_id, shape):
    table = TABLES[table_id]
    key = st.sampled_from(table.keys.tolist()) | st.integers(-(2**63), 2**63 - 1)
    ids = data.draw(hnp.arrays(np.int64, shape, elements=key))
    np.testing.assert_array_equal(layer(table_id)(ids), table.answer(ids))


@pytest.mark.parametrize("batch", [1, 2000])
def test_one_operation_asks_several_tables(batch):
    rng = np.random.default_rng(batch)
    ids = [rng.choice(table.keys, (batch, i)) for i, table in enumerate(TABLES)]
    ids.append(rng.integers(-5, NUM_ROWS + 5, batch))
    several = hps.MultiLookupLayer("m", [0, 1, 2, 0], [128, 24, 16, 128], tf.float32)
    answers = several([tf.constant(i) for i in ids])
    for answer, keys, table in zip(answers, ids, [*TABLES, RANGE], strict=True):
        np.testing.assert_array_equal(answer, table.answer(keys))


def test_a_large_batch_is_shared_out_among_threads_and_stays_right():
    ids = np.random.default_rng(0).integers(-100, NUM_ROWS + 100, (4096, 13))
    np.testing.assert_array_equal(layer(0)(ids), RANGE.answer(ids))


def test_a_function_of_unknown_shapes_infers_the_last_dimension():
    lookup = layer(1)
    function = tf.function(lookup.__call__).get_concrete_function(
        tf.TensorSpec([None, None], tf.int64)
    )
    assert function.structured_outputs.shape.as_list() == [None, None, 24]


def test_a_keras_model_holds_layers_and_is_saved_and_loaded(tmp_path):
    ids = keras.Input((3,), dtype="int64")
    model = keras.Model(ids, [layer(0, name="range")(ids), layer(1, name="scattered")(ids)])
    assert [output.shape for output in model.outputs] == [(None, 3, 128), (None, 3, 24)]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    keys = np.array([[0, 1, 499], [7, -1, 500]])
    for answer, table in zip(again(keys), TABLES[:2], strict=True):
        np.testing.assert_array_equal(answer, table.answer(keys))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.lookup = layer(1)

    def call(self, ids):
        return self.lookup(ids)


def test_a_subclassed_model_is_exported_for_integers(tmp_path):
    model = Subclassed()
    keys = SCATTERED.keys[:6].reshape(2, 3)
    model(tf.constant(keys))
    signature = [tf.TensorSpec([None, 3], tf.int64)]
    model.export(tmp_path / "saved_model", input_signature=signature, verbose=False)
    again = tf.saved_model.load(tmp_path / "saved_model")
    np.testing.assert_array_equal(again.serve(tf.constant(keys)), SCATTERED.answer(keys))


def test_floats_that_were_traced_are_refused_when_run():
    function = tf.function(layer(0).__call__).get_concrete_function(tf.TensorSpec([None]))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="ids are float32; pass int32 or int64"
    ):
        function(tf.constant([1.0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: layer(2, ps_config_file="ps.json", global_batch_size=7),
        lambda: hps.SparseLookupLayer("m", 1, 24, tf.float32),
        lambda: hps.MultiLookupLayer("m", (0, 1), (128, 24), "float32"),
    ],
    ids=["dense", "sparse", "several"],
)
def test_a_layer_is_made_again_from_its_configuration(make):
    one = make()
    config = one.get_config()
    assert type(one).from_config(config).get_config() == config


def test_a_policy_of_half_precision_leaves_rows_as_they_are():
    ids = np.arange(5)
    np.testing.assert_array_equal(layer(0, dtype="mixed_float16")(ids), RANGE.answer(ids))


def test_many_threads_ask_several_layers_at_once():
    layers = [layer(i) for i in range(3)]
    functions = [tf.function(one.__call__) for one in layers]

    def ask(seed):
        rng = np.random.default_rng(seed)
        for _ in range(10):
            for function, table in zip(functions, TABLES, strict=True):
                keys = rng.choice(table.keys, (64, 26))
                np.testing.assert_array_equal(function(tf.constant(keys)), table.answer(keys))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))


def test_statistics_count_keys_and_missing_keys():
    before = hps.statistics()["m"]["sparse_embedding0"]
    with tf.device("/CPU:0"):
        layer(0)(np.arange(NUM_ROWS - 10, NUM_ROWS + 5))
    after = hps.statistics()["m"]["sparse_embedding0"]
    counted = {name: after[name] - before[name] for name in ("lookups", "keys", "missing_keys")}
    assert counted == {"lookups": 1, "keys": 15, "missing_keys": 5}


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        (("m", 3, 16), tf.errors.InvalidArgumentError,
         r"model m has 3 tables, and table_id is 3; it must be in \[0, 2\]"),
        (("m", 0, 64), tf.errors.InvalidArgumentError,
         "table 0 of model m has vectors of 128 values, and emb_vec_size is 64"),
        (("wide", 0, 64), tf.errors.FailedPreconditionError,
         "hps: model wide: the configuration has no model 'wide'\n  hint: it has m"),
    ],
    ids=["table", "size", "model"],
)  # fmt: skip
def test_a_layer_that_fits_no_table_fails_when_run(arguments, error, problem):
    wrong = hps.LookupLayer(*arguments, tf.float32)
    with pytest.raises(error, match=problem):
        tf.function(wrong.__call__)(tf.constant([1]))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: hps.LookupLayer("m", 0, 128, tf.bfloat16), "emb_vec_dtype is bfloat16"),
        (lambda: hps.LookupLayer("m", -1, 128, tf.float32), "table_id is -1"),
        (lambda: hps.LookupLayer("m", 0, 0, tf.float32), "emb_vec_size is 0"),
        (lambda: hps.LookupLayer("m", 0, 1.5, tf.float32), "emb_vec_size is 1.5"),
        (lambda: hps.LookupLayer("m", "x", 128, tf.float32), "table_id is 'x'"),
        (lambda: hps.LookupLayer("m", 0, None, tf.float32), "emb_vec_size is None"),
        (lambda: hps.LookupLayer("m", 0, math.inf, tf.float32), "emb_vec_size is inf"),
        (lambda: hps.MultiLookupLayer("m", [], [], tf.float32), "0 table_ids, and 0 emb_vec_sizes"),
        (lambda: hps.MultiLookupLayer("m", [0], [1, 2], tf.float32),
         "1 table_ids, and 2 emb_vec_sizes"),
        (lambda: layer(0).call(tf.constant([1.0])), "ids are float32"),
        (lambda: hps.MultiLookupLayer("m", [0], [128], tf.float32).call([]),
         "0 id tensors, and 1 table_ids"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_at_once(make, problem):
    with pytest.raises(HpsError, match=problem):
        make()


def test_scalar_ids_are_refused():
    with pytest.raises(ValueError, match="must be at least rank 1 but is rank 0"):
        tf.function(layer(0).__call__)(tf.constant(1))
