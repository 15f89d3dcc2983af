"""Lookups of TensorFlow on a GPU: the same rows, from the cache there or from the host."""

import time
from concurrent.futures import ThreadPoolExecutor

import lookup_models
import numpy as np
import pytest
import tensorflow as tf

import hpsbench.hps as hps
from hpsbench.errors import HpsError
from hpsbench.hps import session
from hpsbench.hps.gpu_lookup import GpuLookup
from hpsbench.hps.lookup import open_model

pytestmark = pytest.mark.gpu

KEYS = np.random.default_rng(0).permutation(4000) * 97 - 50_000
CACHES = {
    "all": {"gpucacheper": 1.0},
    "a tenth": {"gpucacheper": 0.1, "hit_rate_threshold": 1.1},
    "none": {"gpucacheper": 0.0},
    "static": {"embedding_cache_type": "static"},
    "uvm": {"embedding_cache_type": "uvm", "gpucacheper": 0.5},
    "no cache": {"gpucache": False},
}


@pytest.fixture(autouse=True)
def _nothing_initialised():
    session.reset()
    yield
    session.reset()


@pytest.fixture(params=CACHES.values(), ids=list(CACHES))
def tables(request, tmp_path):
    made = [
        lookup_models.seeded_table(KEYS, 128, default=1.5),
        lookup_models.seeded_table(np.arange(1000), 16, default=-1.0, seed=1),
    ]
    path = lookup_models.write_model(tmp_path, made, **request.param)
    hps.Init(ps_config_file=str(path))
    return made


def layers(tables):
    return [
        hps.LookupLayer("m", i, table.rows.shape[1], tf.float32) for i, table in enumerate(tables)
    ]


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("shape", [(7,), (832,), (33, 26), (2, 3, 4), (0, 26), (2048, 26)], ids=str)
def test_rows_and_defaults_of_any_shape(tables, shape, dtype):
    rng = np.random.default_rng(2)
    for table, layer in zip(tables, layers(tables), strict=True):
        for _ in range(2):
            ids = rng.choice(np.append(table.keys, [-3, 10**6]), shape)
            with tf.device("/GPU:0"):
                rows = layer(tf.constant(ids, dtype))
            assert "GPU" in rows.device
            np.testing.assert_array_equal(rows.numpy(), table.answer(ids))


def test_ids_that_a_gpu_computes(tables):
    """TensorFlow has int32 of the host, or of the GPU that computed them."""

    @tf.function
    def rows_of(numbers, dtype):
        computed = tf.cast(numbers * 2.0, dtype)
        return computed, [layer(computed) for layer in layers(tables)]

    numbers = np.random.default_rng(7).integers(-2000, 2000, (300, 26)).astype(np.float32)
    for dtype in (tf.int32, tf.int64):
        with tf.device("/GPU:0"):
            ids, rows = rows_of(tf.constant(numbers), dtype)
        np.testing.assert_array_equal(ids, numbers.astype(int) * 2)
        for table, got in zip(tables, rows, strict=True):
            assert "GPU" in got.device
            np.testing.assert_array_equal(got, table.answer(ids.numpy()))


def test_rows_are_those_of_embedding_lookup(tables):
    with tf.device("/GPU:0"):
        variable = tf.Variable(tables[1].rows)
        ids = tf.constant(np.random.default_rng(4).integers(0, 1000, (64, 26)))
        np.testing.assert_array_equal(
            layers(tables)[1](ids).numpy(), tf.nn.embedding_lookup(variable, ids).numpy()
        )


def test_several_tables_in_one_operation(tables):
    layer = hps.MultiLookupLayer("m", [0, 1, 0], [128, 16, 128], tf.float32)
    rng = np.random.default_rng(3)
    ids = [rng.choice(tables[t].keys, shape) for t, shape in ((0, (9, 2)), (1, (50,)), (0, (0, 1)))]
    with tf.device("/GPU:0"):
        rows = layer([tf.constant(i) for i in ids])
    for table, asked, got in zip((0, 1, 0), ids, rows, strict=True):
        np.testing.assert_array_equal(got.numpy(), tables[table].answer(asked))


def test_half_rows_are_those_of_embedding_lookup_cast(tables):
    rng = np.random.default_rng(6)
    multi = hps.MultiLookupLayer("m", [1, 0], [16, 128], tf.float16)
    with tf.device("/GPU:0"):
        for shape in ((7,), (33, 26), (0, 3), (2048, 26)):
            ids = [rng.integers(-5, 1005, shape), rng.choice(tables[0].keys, shape)]
            both = multi([tf.constant(i) for i in ids])
            for t, asked, rows in zip((1, 0), ids, both, strict=True):
                dim = tables[t].rows.shape[1]
                one = hps.LookupLayer("m", t, dim, tf.float16)(tf.constant(asked))
                expected = tf.cast(tables[t].answer(asked), tf.float16)
                assert one.dtype == rows.dtype == tf.float16
                np.testing.assert_array_equal(rows.numpy(), expected.numpy())
                np.testing.assert_array_equal(one.numpy(), expected.numpy())
        ids = tf.constant(rng.choice(tables[0].keys, (50, 2)))
        clipped = hps.LookupLayer("m", 0, 128, tf.float16)(ids, max_norm=2.0)
        whole = hps.LookupLayer("m", 0, 128, tf.float32)(ids, max_norm=2.0)
        np.testing.assert_array_equal(clipped.numpy(), tf.cast(whole, tf.float16).numpy())


def test_updates_reach_the_gpu(tables):
    ids = tf.constant(np.append(tables[0].keys[:300], [10**9, 10**9 + 1]))
    first = layers(tables)[0]
    with tf.device("/GPU:0"):
        first(ids)
        changed = np.append(tables[0].keys[100:400], 10**9)
        rows = np.random.default_rng(8).random((301, 128), dtype=np.float32)
        hps.update("m", 0, changed, rows)
        expected = tables[0].answer(ids.numpy())
        expected[100:300] = rows[:200]
        expected[300] = rows[300]
        np.testing.assert_array_equal(first(ids).numpy(), expected)
        hps.refresh("m")
        np.testing.assert_array_equal(first(ids).numpy(), expected)


def test_rows_of_a_lookup_in_python_become_tensors(tmp_path):
    table = lookup_models.seeded_table(KEYS, 128, default=1.5)
    path = lookup_models.write_model(tmp_path, [table], gpucacheper=1.0)
    lookup = GpuLookup(open_model(path, "m", gpus=True))
    rng = np.random.default_rng(9)
    for _ in range(20):
        keys = rng.choice(KEYS, 500)
        with tf.device("/GPU:0"):
            on_gpu = tf.constant(keys)
        for asked in (keys, on_gpu):
            rows = lookup.lookup_flat(asked, [500]).reshape(500, 128)
            tensor = tf.experimental.dlpack.from_dlpack(rows.__dlpack__())
            del rows
            assert "GPU" in tensor.device
            np.testing.assert_array_equal((tensor + 0).numpy(), table.answer(keys))


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64], ids=["int32", "int64"])
def test_a_function_asked_from_many_threads(tables, dtype):
    first, second = layers(tables)

    @tf.function
    def both(ids, others):
        return first(ids), second(others)

    def ask(seed):
        rng = np.random.default_rng(seed)
        for _ in range(10):
            ids = rng.choice(tables[0].keys, (int(rng.integers(1, 300)), 26))
            others = rng.choice(tables[1].keys, (5, 26))
            with tf.device("/GPU:0"):
                rows, other_rows = both(tf.constant(ids, dtype), tf.constant(others, dtype))
            np.testing.assert_array_equal(rows.numpy(), tables[0].answer(ids))
            np.testing.assert_array_equal(other_rows.numpy(), tables[1].answer(others))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_lookup_does_not_wait_for_what_the_gpu_was_given_before(tmp_path, share):
    """Nor does its caller, who can give the GPU more meanwhile."""
    table = lookup_models.seeded_table(np.arange(4000), 128)
    path = lookup_models.write_model(
        tmp_path, [table], gpucacheper=share, hit_rate_threshold=1.1, max_batch_size=3000
    )
    hps.Init(ps_config_file=str(path))
    layer = hps.LookupLayer("m", 0, 128, tf.float32)
    ids = tf.constant(np.random.default_rng(1).choice(1500, 2600), tf.int32)
    with tf.device("/GPU:0"):
        matrix = tf.random.normal((6144, 6144)) / 100
        layer(ids)
        tf.linalg.matmul(matrix, matrix)
        tf.test.experimental.sync_devices()
        started = time.perf_counter()
        product = matrix
        for _ in range(100):
            product = tf.linalg.matmul(product, matrix)
        rows = layer(ids)
        returned = time.perf_counter()
        tf.test.experimental.sync_devices()
        done = time.perf_counter()
    assert done - returned > 0.5 * (done - started)
    np.testing.assert_array_equal(rows, table.answer(ids.numpy()))


def test_statistics_count_what_the_cache_did(tmp_path):
    table = lookup_models.seeded_table(np.arange(1000), 8)
    path = lookup_models.write_model(
        tmp_path, [table], gpucacheper=0.5, init_ec=False, hit_rate_threshold=1.1
    )
    hps.Init(ps_config_file=str(path))
    layer = hps.LookupLayer("m", 0, 8, tf.float32)
    with tf.device("/GPU:0"):
        for _ in range(2):
            layer(tf.constant([1, 2, 2, -7], tf.int64)).numpy()
    found = hps.statistics()["m"]["sparse_embedding0"]["gpu_caches"][0]
    assert (found["lookups"], found["keys"], found["hits"], found["inserted"]) == (2, 8, 3, 2)
    assert (found["unique_keys"], found["unique_hits"]) == (6, 2)


def test_a_device_that_is_not_there_is_an_error(tmp_path):
    table = lookup_models.seeded_table(np.arange(10), 8)
    path = lookup_models.write_model(tmp_path, [table], deployed_device_list=(0, 77))
    with pytest.raises(HpsError, match="deployed_device_list names device 77"):
        hps.Init(ps_config_file=str(path))
