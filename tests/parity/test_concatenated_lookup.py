"""HpsConcatLookup: rows of several tables side by side, on the CPU and on a GPU."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from lookup_models import seeded_table, write_model

import hpsbench.hps as hps
from hpsbench.hps import session
from hpsbench.hps.op import operations

KEYS = np.random.default_rng(0).permutation(2000) * 97 - 50_000
#: Vector sizes, keys per sample of each table, samples: small, beyond 8 MB, and beyond a scratch.
SHAPES = {
    "small": ((16, 8, 16), (26, 1, 3), 7),
    "large": ((16, 8, 16, 16), (26, 26, 1, 52), 1500),
    "large, of odd sizes": ((5, 16, 3), (101, 26, 7), 3000),
    "wide": ((16, 128), (300, 40), 33),
    "empty": ((16, 8), (4, 4), 0),
}
CACHES = {
    "all": {"gpucacheper": 1.0},
    "a tenth": {"gpucacheper": 0.1, "hit_rate_threshold": 1.1},
    "uvm": {"embedding_cache_type": "uvm", "gpucacheper": 0.5},
    "no cache": {"gpucache": False},
}


@pytest.fixture(autouse=True)
def _nothing_initialised():
    session.reset()
    yield
    session.reset()


def prepare(folder, dims, **options):
    tables = [seeded_table(KEYS + i, dim, default=i + 0.5, seed=i) for i, dim in enumerate(dims)]
    hps.Init(ps_config_file=str(write_model(folder, tables, **options)))
    return tables


def ask(tables, ids, widths=None, **attributes):
    return operations().hps_concat_lookup(
        ids=ids,
        model_name="m",
        table_ids=list(range(len(tables))),
        emb_vec_sizes=[table.rows.shape[1] for table in tables],
        widths=widths or [x.shape[1] * t.rows.shape[1] for x, t in zip(ids, tables, strict=True)],
        **attributes,
    )


def random_ids(keys_per_sample, samples, seed=0):
    rng = np.random.default_rng(seed)
    keys = np.append(KEYS, [-3, 10**6])
    return [rng.choice(keys, (samples, count)).astype(np.int32) for count in keys_per_sample]


def expected(tables, ids):
    flat = [
        table.answer(x).reshape(len(x), x.shape[1] * table.rows.shape[1])
        for table, x in zip(tables, ids, strict=True)
    ]
    return np.concatenate(flat, axis=1)


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_stand_side_by_side(tmp_path, shape, dtype):
    dims, keys_per_sample, samples = SHAPES[shape]
    tables = prepare(tmp_path, dims)
    ids = random_ids(keys_per_sample, samples)
    with tf.device("/CPU:0"):
        rows = ask(tables, [tf.constant(x, dtype) for x in ids])
    np.testing.assert_array_equal(rows, expected(tables, ids))


@pytest.mark.parametrize("device", ["/CPU:0", pytest.param("/GPU:0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_is_of_the_shape_that_is_asked_for(tmp_path, shape, device):
    dims, keys_per_sample, samples = SHAPES[shape]
    tables = prepare(tmp_path, dims)
    ids = random_ids(keys_per_sample, samples)
    answer = expected(tables, ids).reshape(samples, 2, -1 if samples else 48)
    with tf.device(device):
        for _ in range(2):  # large ones in the memory of the first
            rows = ask(tables, ids, sample_shape=answer.shape[1:])
            np.testing.assert_array_equal(rows, answer)


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_with_tiers_stand_side_by_side(tmp_path, shape):
    """Rows that the mapped ones do not answer alone go through memory of their own."""
    dims, keys_per_sample, samples = SHAPES[shape]
    tables = prepare(tmp_path, dims)
    new = np.array([-3, int(KEYS[0])])
    changed = []
    for number, table in enumerate(tables):
        rows = np.full((2, table.rows.shape[1]), number + 0.25, np.float32)
        hps.update("m", number, new, rows)
        kept = ~np.isin(table.keys, new)
        changed.append(
            replace(
                table,
                keys=np.append(table.keys[kept], new),
                rows=np.append(table.rows[kept], rows, axis=0),
            )
        )
    ids = random_ids(keys_per_sample, samples)
    for x in ids:
        x[:2, :1] = new[1]
    with tf.device("/CPU:0"):
        rows = ask(tables, [tf.constant(x) for x in ids])
    np.testing.assert_array_equal(rows, expected(changed, ids))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_stand_side_by_side_on_a_gpu(tmp_path, shape, cache, dtype):
    dims, keys_per_sample, samples = SHAPES[shape]
    tables = prepare(tmp_path, dims, **CACHES[cache])
    for seed in range(2):
        ids = random_ids(keys_per_sample, samples, seed)
        with tf.device("/GPU:0"):
            rows = ask(tables, [tf.constant(x, dtype) for x in ids])
        assert "GPU" in rows.device
        np.testing.assert_array_equal(rows, expected(tables, ids))


def test_answers_that_are_kept_stay_as_they_are(tmp_path):
    """The memory of large answers is used again, and only once nobody holds them."""
    dims, keys_per_sample, samples = SHAPES["large"]
    tables = prepare(tmp_path, dims)
    batches = [random_ids(keys_per_sample, samples - seed * 60, seed) for seed in range(12)]
    kept = [ask(tables, [tf.constant(x) for x in ids]) for ids in batches]
    answers = [expected(tables, ids) for ids in batches]
    for rows, answer in zip(kept, answers, strict=True):
        np.testing.assert_array_equal(rows, answer)

    def again(number):
        for turn in range(6):
            at = (number + turn) % len(batches)
            rows = ask(tables, [tf.constant(x) for x in batches[at]])
            np.testing.assert_array_equal(rows, answers[at])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(again, range(4)))
    for rows, answer in zip(kept, answers, strict=True):
        np.testing.assert_array_equal(rows, answer)


def test_ids_of_other_numbers_of_samples_are_refused(tmp_path):
    tables = prepare(tmp_path, (16, 8))
    ids = [tf.constant(x) for x in (np.zeros((4, 2), np.int32), np.zeros((5, 2), np.int32))]
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"ids 1 of shape \[5,2\] give 80 values, which are not 4 samples of 16",
    ):
        ask(tables, ids)


def test_widths_that_cut_a_row_are_refused(tmp_path):
    tables = prepare(tmp_path, (16, 8))
    ids = [tf.constant(np.zeros((4, 2), np.int32))] * 2
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="width 24 is no multiple of emb_vec_size 16"
    ):
        ask(tables, ids, [24, 16])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"table_ids": [0]}, "hps_concat_lookup: table_ids needs one id per input"),
        ({"emb_vec_sizes": [16]}, "hps_concat_lookup: emb_vec_sizes needs one size per input"),
        ({"widths": [32]}, "hps_concat_lookup: widths needs one per input"),
    ],
    ids=["table_ids", "emb_vec_sizes", "widths"],
)
def test_attributes_of_other_numbers_of_inputs_are_refused(tmp_path, attributes, message):
    prepare(tmp_path, (16, 8))
    fitting = {"table_ids": [0, 1], "emb_vec_sizes": [16, 8], "widths": [32, 16]}
    ids = [tf.constant(np.zeros((4, 2), np.int32))] * 2
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        operations().hps_concat_lookup(ids=ids, model_name="m", **{**fitting, **attributes})
