"""HpsConcatLookup between columns of others: each block of columns is where it is to be."""

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
    """Return the blocks' inputs: ids, many of them twice and some of no row, and tensors."""
    rng = np.random.default_rng(seed)
    keys = np.append(KEYS, [-3, 10**6])
    return [
        rng.choice(keys, (layout.samples, block[1])).astype(np.int32)
        if isinstance(block, tuple)
        else rng.standard_normal((layout.samples, block), dtype=np.float32)
        for block in layout.blocks
    ]


def width_of(block):
    return block[0] * block[1] if isinstance(block, tuple) else block


def columns_of(layout, inputs):
    """Return (block, its input, the column behind its last) of each block."""
    ends = np.cumsum([width_of(block) for block in layout.blocks])
    return list(zip(layout.blocks, inputs, ends, strict=True))


def ask(layout, inputs, dtype=tf.int32, **attributes):
    """Return the matrix with the lookups' columns, and then the tensors', written."""
    return with_tensors(layout, inputs, look_up(layout, inputs, dtype, **attributes))


def look_up(layout, inputs, dtype=tf.int32, **attributes):
    columns = columns_of(layout, inputs)
    lookups = [(*of, x, end) for of, x, end in columns if isinstance(of, tuple)]
    fitting = {
        "table_ids": list(range(len(lookups))),
        "emb_vec_sizes": [dim for dim, _, _, _ in lookups],
        "widths": [dim * keys for dim, keys, _, _ in lookups],
        "first_columns": [end - dim * keys for dim, keys, _, end in lookups],
        "width": columns[-1][-1],
    }
    return operations().hps_concat_lookup(
        ids=[tf.constant(x, dtype) for _, _, x, _ in lookups],
        model_name="m",
        **{**fitting, **attributes},
    )


def with_tensors(layout, inputs, matrix):
    for block, x, end in columns_of(layout, inputs):
        if not isinstance(block, tuple):
            matrix = tf.raw_ops.TensorStridedSliceUpdate(
                input=matrix, begin=[0, end - block], end=[0, end], strides=[1, 1],
                value=tf.constant(x), begin_mask=1, end_mask=1,
            )  # fmt: skip
    return matrix


def expected(layout, tables, inputs):
    of_tables = iter(tables)
    return np.concatenate(
        [
            next(of_tables).answer(x).reshape(len(x), width_of(block))
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


@pytest.mark.parametrize("device", ["/CPU:0", pytest.param("/GPU:0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("layout", "sample_shape"),
    [
        ("before", (27, 128)),
        ("several", (12, 73)),
        ("of odd sizes", (1, 3, 29, 1)),
        ("beyond the caches", (27, 128)),
        ("in pieces", (2, 2, 53)),
        ("in pieces", (212,)),
        ("empty", (9, 8)),
    ],
)
def test_a_sample_is_of_the_shape_that_is_asked_for(tmp_path, layout, sample_shape, device):
    layout = LAYOUTS[layout]
    tables, inputs = prepare(tmp_path, layout), batch(layout)
    with tf.device(device):
        rows = look_up(layout, inputs, sample_shape=sample_shape)
        matrix = tf.reshape(rows, [layout.samples, np.prod(sample_shape)])
        matrix = with_tensors(layout, inputs, matrix)
    assert rows.shape == (layout.samples, *sample_shape)
    np.testing.assert_array_equal(matrix, expected(layout, tables, inputs))


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [({}, (None, 27 * 128)), ({"sample_shape": (27, 64, 2)}, (None, 27, 64, 2))],
    ids=["matrix", "of three axes"],
)
def test_a_graph_knows_the_shape_of_a_sample(tmp_path, attributes, shape):
    layout = LAYOUTS["before"]
    prepare(tmp_path, layout)
    function = tf.function(lambda: look_up(layout, batch(layout), **attributes))
    assert function.get_concrete_function().output_shapes.as_list() == list(shape)


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
    dense = np.random.default_rng(1).random((len(ids), 128), np.float32)
    with tf.device("/GPU:0"):
        answer = ask(layout, [dense, ids])
    np.testing.assert_array_equal(answer[:, :128], dense)
    np.testing.assert_array_equal(answer[:, 128:], rows.reshape(len(ids), -1))


@pytest.mark.parametrize("device", ["/CPU:0", pytest.param("/GPU:0", marks=pytest.mark.gpu)])
def test_who_shares_a_matrix_writes_to_one_of_its_own(tmp_path, device):
    """Equal lookups become one when TensorFlow optimises a graph."""
    layout = LAYOUTS["before"]
    tables, (dense, ids) = prepare(tmp_path, layout), batch(layout)

    @tf.function
    def both():
        return ask(layout, [dense, ids]), ask(layout, [-dense, ids])

    with tf.device(device):
        first, second = both()
    np.testing.assert_array_equal(first, expected(layout, tables, [dense, ids]))
    np.testing.assert_array_equal(second, expected(layout, tables, [-dense, ids]))


BETWEEN = LAYOUTS["between"]
NO_SHAPES = [(59, 16), (8, 58), (472, 0), (-8, -59), (2**32, 2**32, 472), (472, *[1] * 253)]
REFUSED = {
    "samples of ids": (
        {2: np.zeros((32, 26), np.int32)},
        {},
        r"ids 1 of shape \[32,26\] give 13312 values, which are not 33 samples of 416",
    ),
    "no width": ({}, {"widths": [48, 0]}, "width 0 is no multiple of emb_vec_size 16"),
    "too few widths": ({}, {"widths": [48]}, "widths needs one per input"),
    "too few columns": ({}, {"first_columns": [0]}, "first_columns needs one per input"),
    "one over another": (
        {},
        {"first_columns": [0, 47]},
        "columns of ids 1 begin at 47, before those that end at 48",
    ),
    "before the matrix": ({}, {"first_columns": [-1, 56]}, "columns of ids 0 begin at -1"),
    "beyond the matrix": ({}, {"width": 471}, "columns end at 472, beyond width 471"),
    "too many tables": ({}, {"table_ids": [0, 1, 1]}, "table_ids needs one id per input"),
    **{
        f"sample_shape {sizes[:3]}": (
            {},
            {"sample_shape": sizes},
            rf"sample_shape \[{','.join(map(str, sizes))}\] is not one of width 472",
        )
        for sizes in NO_SHAPES
    },
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


@pytest.mark.parametrize("sizes", NO_SHAPES, ids=str)
def test_a_shape_that_does_not_fit_is_refused_by_the_graph(tmp_path, sizes):
    prepare(tmp_path, BETWEEN)
    function = tf.function(lambda: look_up(BETWEEN, batch(BETWEEN), sample_shape=sizes))
    with pytest.raises(ValueError, match=r"hps_concat_lookup: sample_shape .* of width 472"):
        function.get_concrete_function()
