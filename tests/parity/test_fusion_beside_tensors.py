"""Lookups that a model concatenates with other tensors: rewritten only where answers stay equal."""

import json
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from lookup_models import seeded_table, write_model
from tensorflow.core.protobuf import saved_model_pb2

import hpsbench.hps as hps
from hpsbench.config import DlrmConfig
from hpsbench.errors import HpsError
from hpsbench.hps import session
from hpsbench.models.build import build_repository
from hpsbench.models.dlrm import forward, seeded_weights
from hpsbench.models.keras_dlrm import dense_model, dlrm_model
from hpsbench.models.savedmodel import export_savedmodel
from hpsbench.models.variants import select_variants
from hpsbench.presets import load_suite

SLOTS, DIM = 26, 16
TABLES = [
    seeded_table(np.arange(1000) * 3, dim, default=i - 0.5, seed=i)
    for i, dim in enumerate((DIM, DIM, DIM, 2 * DIM))
]
SPECS = [
    tf.TensorSpec((None, SLOTS), tf.int32, name="ids"),
    tf.TensorSpec((None, DIM), tf.float32, name="dense"),
]


@pytest.fixture(autouse=True)
def _two_models(tmp_path):
    path = write_model(tmp_path / "tables", TABLES)
    configuration = json.loads(path.read_text("utf-8"))
    configuration["models"].append({**configuration["models"][0], "model": "n"})
    path.write_text(json.dumps(configuration))
    session.reset()
    hps.Init(ps_config_file=str(path))
    yield
    session.reset()


def batch(samples):
    rng = np.random.default_rng(samples)
    ids = rng.integers(-9, 3010, (samples, SLOTS), np.int32)
    ids[:, 1::2] = ids[:, ::2]
    return tf.constant(ids), tf.constant(rng.standard_normal((samples, DIM), np.float32))


def lookup(ids, table=0, model="m", dtype=tf.float32):
    return hps.LookupLayer(model, table, TABLES[table].rows.shape[1], dtype)(ids)


def flat(ids, table=0, **options):
    return tf.reshape(lookup(ids, table, **options), [-1, SLOTS * DIM])


def vector(dense):
    return tf.reshape(dense, [-1, 1, DIM])


def of_unknown_width(dense):
    width = tf.cast(tf.reduce_sum(dense) * 0, tf.int32) + DIM
    return tf.slice(dense, [0, 0], tf.stack([-1, width]))


def after_a_check(ids, dense):
    """The concatenation waits for a check, which nothing would wait for without it."""
    rows = lookup(ids)
    with tf.control_dependencies([tf.debugging.assert_all_finite(dense, "dense")]):
        return tf.concat([vector(dense), rows], axis=1)


def given_waits_for_the_lookup(ids, dense):
    rows = lookup(ids)
    with tf.control_dependencies([rows]):
        later = dense * 2
    return tf.concat([vector(later), rows], axis=1)


def given_needs_the_answer(ids, dense):
    rows = lookup(ids)
    return tf.concat([vector(dense) + tf.reduce_sum(rows, 1, keepdims=True), rows], axis=1)


def given_needs_another_answer(ids, dense):
    means = tf.reduce_mean(lookup(ids, 1), 1, keepdims=True)
    return tf.concat([means, lookup(ids), vector(dense)], axis=1)


def one_after_another(ids, dense):
    """The ids of the second lookup need what the first one's concatenation gives."""
    first = tf.concat([flat(ids), dense], axis=1)
    again = tf.cast(tf.abs(first[:, :SLOTS]) * 100, tf.int32)
    return tf.concat([dense, first, flat(again)], axis=1)


def row_also_elsewhere(ids, dense):
    row = vector(dense)
    return [tf.concat([row, lookup(ids)], axis=1), row]


def inner_tensor_also_elsewhere(ids, dense):
    inner = dense * 2
    return [tf.concat([vector(inner), lookup(ids)], axis=1), inner, vector(inner)]


def row_twice(ids, dense):
    row = vector(dense)
    return tf.concat([row, lookup(ids), row], axis=1)


def row_that_waits(ids, dense):
    with tf.control_dependencies([tf.debugging.assert_all_finite(dense, "dense")]):
        row = vector(dense)
    return tf.concat([row, lookup(ids)], axis=1)


def row_that_is_waited_for(ids, dense):
    row = vector(dense)
    with tf.control_dependencies([row]):
        later = ids + 0
    return tf.concat([row, lookup(later)], axis=1)


def row_of_a_concatenation(ids, dense):
    first = tf.concat([dense, lookup(ids[:, 0])], axis=1)
    return tf.concat([tf.reshape(first, [-1, 1, 2 * DIM]), lookup(ids, 3)], axis=1)


#: Functions whose tensors beside the lookup are reshaped, and how often they still are.
RESHAPED = {
    "a row": (lambda ids, dense: tf.concat([vector(dense), lookup(ids)], axis=1), 0),
    "rows at both ends": (
        lambda ids, dense: tf.concat([vector(dense), lookup(ids), vector(-dense)], axis=1),
        0,
    ),
    "row twice": (row_twice, 0),
    "inner tensor also elsewhere": (inner_tensor_also_elsewhere, 1),
    "row that is waited for": (row_that_is_waited_for, 0),
    "row also elsewhere": (row_also_elsewhere, 1),
    "row that waits": (row_that_waits, 1),
    "two rows": (
        lambda ids, dense: tf.concat(
            [tf.reshape(tf.tile(dense, [1, 2]), [-1, 2, DIM]), lookup(ids)], axis=1
        ),
        1,
    ),
    "row of other axes": (
        lambda ids, dense: tf.concat(
            [vector(tf.stack([dense[:, :8], dense[:, 8:]], axis=1)), lookup(ids)], axis=1
        ),
        1,
    ),
    "row of unknown length": (
        lambda ids, dense: tf.concat([vector(of_unknown_width(dense)), lookup(ids)], axis=1),
        1,
    ),
    "rows of other samples": (
        lambda ids, dense: tf.concat([vector(tf.reshape(dense, [-1, 4])), lookup(ids)], axis=1),
        2,
    ),
}
#: Functions of (ids, dense), and of each operation how many are left.
REWRITTEN = {
    "DLRM's, before": lambda ids, dense: tf.concat([vector(dense), lookup(ids)], axis=1),
    "after": lambda ids, dense: tf.concat([lookup(ids), vector(dense)], axis=-2),
    "between": lambda ids, dense: tf.concat(
        [lookup(ids), vector(dense), lookup(ids[:, :3], 1)], axis=1
    ),
    "several": lambda ids, dense: tf.concat(
        [
            vector(dense),
            lookup(ids),
            tf.reshape(tf.tile(dense, [1, 3]), [-1, 3, DIM]),
            vector(-dense),
        ],
        axis=1,
    ),
    "flat, before": lambda ids, dense: tf.concat([dense[:, :3], flat(ids)], axis=1),
    "flat, after": lambda ids, dense: tf.concat([flat(ids), dense], axis=-1),
    "flat, between and several": lambda ids, dense: tf.concat(
        [dense[:, :3], flat(ids), dense, flat(ids, 2), dense[:, 3:5]], axis=1
    ),
    "one key per sample": lambda ids, dense: tf.concat([dense, lookup(ids[:, 0])], axis=1),
    "lookups alone": lambda ids, dense: tf.concat([lookup(ids), lookup(ids, 1)], axis=1),
    "an argument": lambda ids, dense: tf.concat([dense, flat(ids)], axis=1),
    "a tensor that waits for the lookup": given_waits_for_the_lookup,
    "a constant beside": lambda ids, dense: tf.concat(
        [tf.zeros_like(dense) + 2, flat(ids)], axis=1
    ),
}
LEFT = {
    "of unknown width": (
        lambda ids, dense: tf.concat([of_unknown_width(dense), flat(ids)], axis=1),
        None,
    ),
    "of unknown width, beside two": (
        lambda ids, dense: tf.concat([of_unknown_width(dense), flat(ids), flat(ids, 1)], axis=1),
        {"HpsConcatLookup": 1},
    ),
    "along the vectors": (
        lambda ids, dense: tf.concat([lookup(ids), tf.tile(dense[:, None], [1, SLOTS, 1])], axis=2),
        None,
    ),
    "along the vectors, from the end": (
        lambda ids, dense: tf.concat([tf.tile(dense[:, None], [1, SLOTS, 1]), lookup(ids)], -1),
        None,
    ),
    "along the samples, from the end": (
        lambda ids, dense: tf.concat([tf.tile(dense, [1, SLOTS]), flat(ids)], axis=-2),
        None,
    ),
    "along the samples": (
        lambda ids, dense: tf.concat([lookup(ids), tf.tile(dense[:, None], [1, SLOTS, 1])], axis=0),
        None,
    ),
    "needed besides": (
        lambda ids, dense: (lambda rows: [tf.concat([vector(dense), rows], 1), rows])(lookup(ids)),
        None,
    ),
    "float16": (
        lambda ids, dense: tf.concat(
            [tf.cast(vector(dense), tf.float16), lookup(ids, dtype=tf.float16)], axis=1
        ),
        None,
    ),
    "two models": (
        lambda ids, dense: tf.concat([vector(dense), lookup(ids), lookup(ids, model="n")], axis=1),
        None,
    ),
    "after a check": (after_a_check, None),
    "a tensor that needs the answer": (given_needs_the_answer, None),
    "a tensor that needs another answer": (
        given_needs_another_answer,
        {"HpsConcatLookup": 1, "HpsLookup": 1},
    ),
    "one after another": (one_after_another, {"HpsConcatLookup": 2}),
    "a row of a concatenation": (row_of_a_concatenation, {"HpsConcatLookup": 2}),
}
CASES = {
    **{name: (f, {"HpsConcatLookup": 1}) for name, f in REWRITTEN.items()},
    **{name: (f, {"HpsConcatLookup": 1}) for name, (f, _) in RESHAPED.items()},
    **LEFT,
}


@pytest.mark.parametrize("device", ["/CPU:0", pytest.param("/GPU:0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("case", CASES)
def test_answers_are_equal_and_only_what_can_be_is_rewritten(tmp_path, case, device):
    function, operations = CASES[case]
    module = tf.Module()
    module.call = tf.function(function, input_signature=SPECS)
    tf.saved_model.save(module, str(tmp_path / "plain"), signatures={})
    if operations is None:
        with pytest.raises(HpsError, match="has no two lookups that can be fused"):
            hps.export_fused(tmp_path / "plain", tmp_path / "fused")
        return
    hps.export_fused(tmp_path / "plain", tmp_path / "fused")
    assert lookups_in(tmp_path / "fused") == operations
    with tf.device(device):
        plain, fused = (tf.saved_model.load(str(tmp_path / n)) for n in ("plain", "fused"))
        for samples in (0, 1, 7, 300):
            tf.nest.map_structure(
                np.testing.assert_array_equal,
                fused.call(*batch(samples)),
                plain.call(*batch(samples)),
            )
    shapes = fused.call.get_concrete_function(*SPECS).output_shapes
    assert shapes == plain.call.get_concrete_function(*SPECS).output_shapes


@pytest.mark.parametrize("case", RESHAPED)
def test_a_row_is_written_without_its_reshape(tmp_path, case):
    function, reshapes = RESHAPED[case]
    module = tf.Module()
    module.call = tf.function(function, input_signature=SPECS)
    tf.saved_model.save(module, str(tmp_path / "plain"), signatures={})
    hps.export_fused(tmp_path / "plain", tmp_path / "fused")
    counts = Counter(node.op for node in nodes_in(tmp_path / "fused"))
    assert (counts["ConcatV2"], counts["Reshape"]) == (0, reshapes)


def test_a_concatenation_of_rows_alone_is_exported_as_for_an_earlier_version(tmp_path):
    module = tf.Module()
    module.call = tf.function(
        lambda ids, dense: tf.concat([flat(ids), flat(ids, 1)], axis=1), input_signature=SPECS
    )
    tf.saved_model.save(module, str(tmp_path / "plain"), signatures={})
    hps.export_fused(tmp_path / "plain", tmp_path / "fused")
    (fused,) = (n for n in nodes_in(tmp_path / "fused") if n.op == "HpsConcatLookup")
    assert not {"first_columns", "width", "sample_shape"} & set(fused.attr)
    plain, fused = (tf.saved_model.load(str(tmp_path / n)) for n in ("plain", "fused"))
    np.testing.assert_array_equal(fused.call(*batch(7)), plain.call(*batch(7)))


@pytest.mark.parametrize("case", REWRITTEN)
def test_a_model_in_the_process_is_rewritten_too(case):
    function = REWRITTEN[case]
    np.testing.assert_array_equal(hps.fuse(function)(*batch(9)), function(*batch(9)))


def test_a_rewritten_model_refuses_tensors_of_other_samples(tmp_path):
    module = tf.Module()
    module.call = tf.function(REWRITTEN["DLRM's, before"], input_signature=SPECS)
    tf.saved_model.save(module, str(tmp_path / "plain"), signatures={})
    hps.export_fused(tmp_path / "plain", tmp_path / "fused")
    (ids, _), (_, dense) = batch(5), batch(6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Cannot broadcast input shape"):
        tf.saved_model.load(str(tmp_path / "fused")).call(ids, dense)


@pytest.mark.parametrize("device", ["/CPU:0", pytest.param("/GPU:0", marks=pytest.mark.gpu)])
def test_a_served_dlrm_has_its_vectors_beside_the_dense_one(tmp_path, device):
    dlrm = DlrmConfig(bottom_mlp=(32,), top_mlp=(32, 1))
    weights = seeded_weights(dlrm, DIM)
    with keras.device("cpu:0"):
        model = dlrm_model(
            hps.LookupLayer("m", 0, DIM, tf.float32), dense_model(dlrm, weights, DIM), SLOTS
        )
    export_savedmodel(model, tmp_path / "model")
    hps.export_fused(tmp_path / "model", tmp_path / "model")
    assert set(lookups_in(tmp_path / "model")) == {"HpsConcatLookup"}
    assert sources_of_products(tmp_path / "model") == {("HpsConcatLookup", "Relu")}
    with tf.device(device):
        served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
        for samples in (1, 64, 301):
            ids, _ = batch(samples)
            numerical = np.random.default_rng(samples).random((samples, 13), np.float32)
            answer = served(categorical_features=ids, numerical_features=tf.constant(numerical))
            expected = forward(weights, TABLES[0].answer(ids.numpy()), numerical)
            # TensorFlow may compute matrix products in TF32 on a GPU.
            np.testing.assert_allclose(answer["output_1"], expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("xla", "operations"),
    [(False, {"HpsConcatLookup"}), (True, {"HpsLookup"})],
    ids=["as served", "with XLA"],
)
def test_hps_tf_is_exported_so_unless_xla_takes_the_vectors(tmp_path, xla, operations):
    suite = load_suite("smoke", [f"servers.xla={str(xla).lower()}", "tables.embedding_dim=16"])
    build = build_repository(suite, select_variants(["hps_tf"], suite), tmp_path / "built")
    path = build.repository.version_folder("hps_tf") / "model.savedmodel"
    assert set(lookups_in(path)) == operations


def lookups_in(saved_model):
    return Counter(node.op for node in nodes_in(saved_model) if node.op.startswith("Hps"))


def nodes_in(saved_model):
    return [node for function in functions_in(saved_model) for node in function.node_def]


def functions_in(saved_model):
    graph = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    return graph.meta_graphs[0].graph_def.library.function


def sources_of_products(saved_model):
    """Return what gives the tensor and the values of the updates that products of pairs take."""
    found = set()
    for function in functions_in(saved_model):
        nodes = {node.name: node for node in function.node_def}

        def source(node, number, nodes=nodes):
            return nodes[node.input[number].partition(":")[0]]

        products = [node for node in function.node_def if node.op == "BatchMatMulV2"]
        for update in (source(node, number) for node in products for number in (0, 1)):
            assert update.op == "TensorStridedSliceUpdate"
            found.add((source(update, 0).op, source(update, 4).op))
    return found
