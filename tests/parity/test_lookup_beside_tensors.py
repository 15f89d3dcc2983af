"""HpsConcatLookup with tensors that are given: each block of columns is where it is to be."""

from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf
from lookup_models import seeded_table, write_model

import hpsbench.hps as hps
from hpsbench.hps import session
from hpsbench.hps.op import operations

KEYS = np.random.default_rng(0).permutation(2000) * 97 - 50_000


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Blocks of a matrix: (embedding_dim, keys per sample) of a lookup, or a tensor's width."""

    blocks: tuple[tuple[int, int] | int, ...]
    samples: int


LAYOUTS = {
    "before": Layout(blocks=(128, (128, 26)), samples=7),
    "after": Layout(blocks=((128, 26), 128), samples=1),
    "between": Layout(blocks=((16, 3), 8, (16, 26)), samples=33),
    "several": Layout(blocks=(4, (16, 26), 12, 400, (8, 1), (16, 2), 4), samples=129),
    "of odd sizes": Layout(blocks=(1, (5, 7), 3, (16, 3)), samples=101),
    "not aligned": Layout(blocks=(1, (16, 26), (128, 1)), samples=64),
    "beyond the caches": Layout(blocks=(128, (128, 26)), samples=700),
    "in pieces": Layout(blocks=(4, (8, 26)), samples=12_001),
    "many tables": Layout(blocks=(3 * 4, *[(16, 2)] * 110), samples=50),
    "empty": Layout(blocks=((16, 4), 8), samples=0),
}
CACHES = {
    "all": {"gpucacheper": 1.0},
    "a tenth": {"gpucacheper": 0.1, "hit_rate_threshold": 1.1},
    "a tenth, in parts": {"gpucacheper": 0.1, "hit_rate_threshold": 1.1, "max_batch_size": 1000},
    "static": {"embedding_cache_type": "static"},
    "uvm": {"embedding_cache_type": "uvm", "gpucacheper": 0.5},
    "no cache": {"gpucache": False},
}


@pytest.fixture(autouse=True)
def _nothing_initialised():
    session.reset()
    yield
    session.reset()


def prepare(folder, layout, **options):
    lookups = [block for block in layout.blocks if isinstance(block, tuple)]
    tables = [
        seeded_table(KEYS + i, dim, default=i + 0.5, seed=i) for i, (dim, _) in enumerate(lookups)
    ]
    hps.Init(ps_config_file=str(write_model(folder, tables, **options)))
    return tables


def batch(layout, seed=0):
    """Return the blocks' inputs: ids, many of them twice and some of no row, and given values."""
    rng = np.random.default_rng(seed)
    keys = np.append(KEYS, [-3, 10**6])
    return [
        rng.choice(keys, (layout.samples, block[1])).astype(np.int32)
        if isinstance(block, tuple)
        else rng.standard_normal((layout.samples, block), dtype=np.float32)
        for block in layout.blocks
    ]


def ask(layout, inputs, dtype=tf.int32, **attributes):
    pairs = list(zip(layout.blocks, inputs, strict=True))
    lookups = [(block, x) for block, x in pairs if isinstance(block, tuple)]
    given = [(block, x) for block, x in pairs if not isinstance(block, tuple)]
    by_input = sorted(range(len(pairs)), key=lambda i: not isinstance(layout.blocks[i], tuple))
    fitting = {
        "table_ids": list(range(len(lookups))),
        "emb_vec_sizes": [dim for (dim, _), _ in lookups],
        "widths": [*(dim * keys for (dim, keys), _ in lookups), *(width for width, _ in given)],
        "order": [by_input.index(i) for i in range(len(pairs))],
    }
    return operations().hps_concat_lookup(
        ids=[tf.constant(x, dtype) for _, x in lookups],
        given=[tf.constant(x) for _, x in given],
        model_name="m",
        **{**fitting, **attributes},
    )


def expected(layout, tables, inputs):
    of_tables = iter(tables)
    return np.concatenate(
        [
            next(of_tables).answer(x).reshape(len(x), block[0] * block[1])
            if isinstance(block, tuple)
            else x
            for block, x in zip(layout.blocks, inputs, strict=True)
        ],
        axis=1,
    )


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_blocks_stand_side_by_side(tmp_path, layout, dtype):
    tables, inputs = prepare(tmp_path, layout), batch(layout)
    with tf.device("/CPU:0"):
        rows = ask(layout, inputs, dtype)
    np.testing.assert_array_equal(rows, expected(layout, tables, inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_blocks_stand_side_by_side_on_a_gpu(tmp_path, layout, cache, dtype):
    tables = prepare(tmp_path, layout, **CACHES[cache])
    for seed in range(2):
        inputs = batch(layout, seed)
        with tf.device("/GPU:0"):
            rows = ask(layout, inputs, dtype)
        assert "GPU" in rows.device
        np.testing.assert_array_equal(rows, expected(layout, tables, inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["before", "several", "not aligned"])
def test_float8_rows_stand_beside_tensors_as_alone(tmp_path, layout):
    layout = LAYOUTS[layout]
    prepare(tmp_path, layout, embedding_cache_type="static", fp8_quant=True)
    inputs = batch(layout)
    with tf.device("/GPU:0"):
        rows, blocks, table = ask(layout, inputs), [], 0
        for block, x in zip(layout.blocks, inputs, strict=True):
            if isinstance(block, tuple):
                x = operations().hps_lookup(
                    ids=x, model_name="m", table_id=table, emb_vec_size=block[0]
                ).numpy()  # fmt: skip
                table += 1
            blocks.append(x.reshape(layout.samples, -1))
    np.testing.assert_array_equal(rows, np.concatenate(blocks, axis=1))


@pytest.mark.gpu
def test_host_rows_read_region_by_region_stand_beside_tensors(tmp_path):
    """1.6 GB of rows stay on the host, which a GPU reads 1 GiB at a time."""
    table = seeded_table(np.arange(700_000), 640, default=-1.0)
    path = write_model(tmp_path, [table], embedding_cache_type="uvm", gpucacheper=0.1)
    hps.Init(ps_config_file=str(path))
    ids = np.random.default_rng(0).integers(0, 700_100, (301, 26), np.int32)
    rows = np.where(ids[..., None] < 700_000, table.rows[np.minimum(ids, 699_999)], np.float32(-1))
    layout = Layout(blocks=(128, (640, 26)), samples=len(ids))
    given = np.random.default_rng(1).random((len(ids), 128), np.float32)
    with tf.device("/GPU:0"):
        answer = ask(layout, [given, ids])
    np.testing.assert_array_equal(answer[:, :128], given)
    np.testing.assert_array_equal(answer[:, 128:], rows.reshape(len(ids), -1))


def test_a_given_tensor_may_have_any_shape_of_as_many_samples(tmp_path):
    layout = LAYOUTS["between"]
    tables, inputs = prepare(tmp_path, layout), batch(layout)
    shaped = [inputs[0], inputs[1].reshape(-1, 2, 4), inputs[2]]
    np.testing.assert_array_equal(ask(layout, shaped), expected(layout, tables, inputs))


BETWEEN = LAYOUTS["between"]
REFUSED = {
    "samples of a tensor": (
        {1: np.zeros((34, 8), np.float32)},
        {},
        r"given 0 of shape \[34,8\] give 272 values, which are not 33 samples of 8",
    ),
    "samples of ids": (
        {2: np.zeros((32, 26), np.int32)},
        {},
        r"ids 1 of shape \[32,26\] give 13312 values, which are not 33 samples of 416",
    ),
    "no width": ({}, {"widths": [48, 416, 0]}, "width 0 is below 1"),
    "too few widths": ({}, {"widths": [48, 416]}, "widths needs one per input"),
    "an input twice": ({}, {"order": [0, 1, 1]}, "order needs the number of each input once"),
    "an input missing": ({}, {"order": [1, 0]}, "order needs the number of each input once"),
    "no such input": ({}, {"order": [0, 1, 3]}, "order needs the number of each input once"),
    "too many tables": ({}, {"table_ids": [0, 1, 1]}, "table_ids needs one id per input of ids"),
}


@pytest.mark.parametrize("device", ["/CPU:0", pytest.param("/GPU:0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, case, device):
    prepare(tmp_path, BETWEEN)
    replaced, attributes, message = REFUSED[case]
    inputs = [replaced.get(i, x) for i, x in enumerate(batch(BETWEEN))]
    with (
        tf.device(device),
        pytest.raises(tf.errors.InvalidArgumentError, match=f"hps_concat_lookup: {message}"),
    ):
        ask(BETWEEN, inputs, **attributes)
