"""A model whose lookups are fused at export answers as it did, whatever kind of model it is."""

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from lookup_models import seeded_table, write_model
from tensorflow.core.protobuf import saved_model_pb2

import hpsbench.hps as hps
from hpsbench.errors import HpsError
from hpsbench.hps import session

SLOTS, BATCH = 26, 7
#: Five tables of 16 and three of 8, with ranges of keys that do not meet.
TABLES = [
    seeded_table(np.arange(1000) + i * 1000, 16 if i < 5 else 8, default=i - 0.5, seed=i)
    for i in range(8)
]
SPECS = [tf.TensorSpec((None, SLOTS), tf.int32, name=f"ids{i}") for i in range(len(TABLES))]


@pytest.fixture(params=[False, True], ids=["tables apart", "tables fused"])
def ps_config_file(request, tmp_path):
    path = write_model(tmp_path / "tables", TABLES, fuse=request.param)
    session.reset()
    yield str(path)
    session.reset()


def layer(i, ps_config_file, **options):
    size = TABLES[i].rows.shape[1]
    return hps.LookupLayer("m", i, size, tf.float32, ps_config_file, name=f"table{i}", **options)


def batches(seed=0):
    """Return the ids of each table: its own keys, its siblings', and such as none has."""
    ids = np.random.default_rng(seed).integers(-500, 8500, (len(TABLES), BATCH, SLOTS), np.int32)
    ids[:, ::2] = ids[:, ::2] % 1000 + np.arange(len(TABLES))[:, None, None] * 1000
    return [tf.constant(i) for i in ids]


class Subclassed(keras.Model):
    """The published demo: layers in a list, called in a loop."""

    def __init__(self, ps_config_file):
        super().__init__()
        self.lookup_layers = [layer(i, ps_config_file) for i in range(len(TABLES))]
        self.fc = keras.layers.Dense(1)

    def call(self, inputs):
        embeddings = [
            tf.reshape(lookup(ids), [-1, SLOTS * lookup.emb_vec_size])
            for lookup, ids in zip(self.lookup_layers, inputs, strict=True)
        ]
        return self.fc(tf.concat(embeddings, axis=1))


def functional(ps_config_file):
    inputs = [keras.Input((SLOTS,), dtype="int32", name=f"ids{i}") for i in range(len(TABLES))]
    flat = [keras.layers.Flatten()(layer(i, ps_config_file)(x)) for i, x in enumerate(inputs)]
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(flat)))


def nested(ps_config_file):
    """A model in a layer behind a `tf.function`, beside lookups of its own."""
    inner = functional(ps_config_file)
    inputs = [keras.Input((SLOTS,), dtype="int32", name=f"ids{i}") for i in range(len(TABLES))]

    class Outer(keras.layers.Layer):
        @tf.function
        def call(self, ids):
            return inner(ids)

    own = [keras.layers.Flatten()(layer(i, ps_config_file)(x)) for i, x in enumerate(inputs)]
    joined = keras.layers.Concatenate()([Outer()(inputs), *own])
    return keras.Model(inputs, keras.layers.Dense(1)(joined))


MODELS = {"subclassed": Subclassed, "functional": functional, "nested": nested}


@pytest.fixture(params=MODELS)
def model(request, ps_config_file):
    made = MODELS[request.param](ps_config_file)
    made(batches())
    return made


def lookups_in(saved_model):
    """Return how many nodes of each lookup operation are in a SavedModel, dead functions too."""
    graph = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    nodes = [n for f in graph.meta_graphs[0].graph_def.library.function for n in f.node_def]
    return Counter(node.op for node in nodes if node.op.startswith("Hps"))


def signatures(saved_model):
    loaded = tf.saved_model.load(str(saved_model)).signatures
    return {
        name: (function.structured_input_signature, function.structured_outputs)
        for name, function in loaded.items()
    }


def test_a_fused_model_answers_as_before(model):
    fused = hps.fuse(model)
    for seed in range(3):
        np.testing.assert_array_equal(fused(batches(seed)), model(batches(seed)))
    some = [ids[:3] for ids in batches()]
    np.testing.assert_array_equal(fused(some), model(some))


def test_a_fused_model_takes_the_values_of_python_that_the_model_takes(ps_config_file):
    plain, ids = functional(ps_config_file), batches()
    fused = hps.fuse(plain)
    for training in (True, False, None):
        expected = plain(ids, training=training)
        np.testing.assert_array_equal(fused(ids, training=training), expected)


def test_an_exported_fused_model_answers_and_looks_as_before(model, tmp_path):
    exported = {"input_signature": [SPECS]}
    model.export(tmp_path / "apart", verbose=False, **exported)
    hps.fuse(model).export(tmp_path / "fused", **exported)
    hps.export_fused(tmp_path / "apart", tmp_path / "afterwards")
    for name in ("fused", "afterwards"):
        assert signatures(tmp_path / name) == signatures(tmp_path / "apart")
        assert set(lookups_in(tmp_path / name)) == {"HpsConcatLookup"}
        loaded = tf.saved_model.load(str(tmp_path / name))
        np.testing.assert_array_equal(loaded.serve(batches()), model(batches()))


def test_a_fused_model_shares_the_weights_and_leaves_the_model_as_it_was(ps_config_file):
    model = Subclassed(ps_config_file)
    before = model(batches())
    fused = hps.fuse(model)
    np.testing.assert_array_equal(fused(batches()), before)
    model.fc.bias.assign([1.0])
    np.testing.assert_array_equal(fused(batches()), model(batches()))
    np.testing.assert_allclose(model(batches()), before + 1, rtol=1e-6)


def lookup(ids, *, model="m", table=0, size=16):
    return hps.LookupLayer(model, table, size, tf.float32)(ids)


def dependent(ids):
    """Two tables whose ids are another lookup's answers, and are never below 0."""
    first = [lookup(ids[i], table=i) for i in range(2)]
    second = [tf.cast(tf.abs(rows[..., 0]) * 100, tf.int32) + i for i, rows in enumerate(first)]
    return [*first, lookup(second[0]), lookup(second[1], table=1)]


def sparse(ids):
    sp_ids = tf.sparse.from_dense(ids[0] - 1)
    layers = [hps.SparseLookupLayer("m", i, 16, tf.float32) for i in range(2)]
    return [
        layers[0](sp_ids, None, combiner="sum"),
        layers[1](sp_ids, None, combiner="mean", max_norm=2.0),
        lookup(ids[2], table=2),
    ]


def conditional(ids):
    rows = [lookup(ids[i], table=i) for i in range(2)]
    return tf.cond(
        tf.reduce_sum(rows[0]) > 0,
        lambda: lookup(ids[2], table=2) + lookup(ids[3], table=3) + rows[1],
        lambda: lookup(ids[3], table=3) - lookup(ids[4], table=4),
    )


def ordered(ids):
    """A lookup that waits for a check of another lookup's answer."""
    rows = lookup(ids[0])
    with tf.control_dependencies([tf.debugging.assert_all_finite(rows, "rows")]):
        return [rows, lookup(ids[1], table=1), lookup(ids[2], table=2)]


def flat(ids, table, size=16):
    return tf.reshape(lookup(ids[table], table=table, size=size), [-1, SLOTS * size])


def beside(ids):
    """Runs of concatenated rows around what is of unknown width, and a second concatenation."""
    width = tf.reduce_min(ids[0]) * 0 + SLOTS
    other = tf.slice(tf.cast(ids[0], tf.float32), [0, 0], tf.stack([-1, width]))
    values = [flat(ids, 0), flat(ids, 1), other, flat(ids, 5, 8), flat(ids, 2), flat(ids, 6, 8)]
    values += [other, flat(ids, 3)]
    return [tf.concat(values, axis=1), tf.concat([flat(ids, 4), flat(ids, 7, 8)], axis=-1)]


def used_twice(ids):
    """Rows of table 0 are needed as they are too, and those of table 1 flat too."""
    rows = lookup(ids[0])
    one, two, three = tf.reshape(rows, [-1, SLOTS * 16]), flat(ids, 1), flat(ids, 2)
    return [tf.concat([one, two, three, flat(ids, 3)], 1), rows, two]


def narrow(ids):
    """A row per key, rows of several samples in one, and rows cut in two."""
    rows = [lookup(ids[i], table=i) for i in range(4)]
    return [
        tf.concat([tf.reshape(r, [-1, 16]) for r in rows[:2]], axis=1),
        tf.concat([tf.reshape(r, [-1, 8]) for r in rows[2:]], axis=1),
        tf.concat([flat(ids, 4), tf.reshape(lookup(ids[4], table=3), [BATCH, SLOTS * 16])], 1),
    ]


def other_concatenations(ids):
    rows = [lookup(ids[i], table=i) for i in range(2)]
    return [tf.concat(rows, axis=1), tf.concat(rows, axis=-1), tf.concat([flat(ids, 2)] * 2, 0)]


#: Callables on the ids, and the lookups of each operation that are left once they are fused.
CALLABLES = {
    "vectors of other sizes": (
        lambda ids: [lookup(x, table=i, size=8 if i > 4 else 16) for i, x in enumerate(ids)],
        [8],
    ),
    "one table twice": (lambda ids: [lookup(ids[0]), lookup(ids[1]), lookup(ids[0])], [3]),
    "lookups behind lookups": (dependent, [2, 2]),
    "a lookup that waits for another": (ordered, [2, 1]),
    "two models": (
        lambda ids: [lookup(x, model=name, table=1) for name in ("m", "n") for x in ids[:3]],
        [3, 3],
    ),
    "two types of keys": (
        lambda ids: [lookup(tf.cast(x, t)) for t in (tf.int32, tf.int64) for x in ids[:2]],
        [2, 2],
    ),
    "max_norm": (
        lambda ids: [hps.LookupLayer("m", i, 16, tf.float32)(ids[i], max_norm=2) for i in (0, 1)],
        [2],
    ),
    "sparse ids": (sparse, [3]),
    "branches": (conditional, [2, 2, 2]),
    "concatenated beside others": (beside, [2, 3, 2, 1]),
    "concatenated and used as they are": (used_twice, [2, 2]),
    "concatenated in other widths": (narrow, [1, 2, 3]),
    "concatenated in float16": (
        lambda ids: tf.concat(
            [
                tf.reshape(hps.LookupLayer("m", i, 16, tf.float16)(ids[i]), [-1, SLOTS * 16])
                for i in range(3)
            ],
            axis=1,
        ),
        [3],
    ),
    "concatenated along other axes": (other_concatenations, [3]),
    "ids of other ranks": (
        lambda ids: [lookup(ids[0][0]), lookup(ids[1][None], table=1), lookup(ids[2][:0])],
        [3],
    ),
    "a lookup as the result": (lambda ids: {"a": lookup(ids[0]), "b": [lookup(ids[1])]}, [2]),
}


@pytest.fixture
def two_models(tmp_path):
    path = write_model(tmp_path, TABLES)
    configuration = json.loads(path.read_text("utf-8"))
    configuration["models"].append({**configuration["models"][0], "model": "n"})
    path.write_text(json.dumps(configuration))
    session.reset()
    hps.Init(ps_config_file=str(path))
    yield
    session.reset()


@pytest.mark.parametrize("case", CALLABLES)
def test_what_is_fused_and_what_not(two_models, tmp_path, case):
    function, groups = CALLABLES[case]
    module = tf.Module()
    module.call = tf.function(function, input_signature=[SPECS])
    expected = tf.nest.flatten(function(batches()))
    for answer in (
        hps.fuse(function)(batches()),
        _served(module, tmp_path, groups),
    ):
        tf.nest.map_structure(np.testing.assert_array_equal, tf.nest.flatten(answer), expected)


def _served(module, tmp_path, groups):
    tf.saved_model.save(module, str(tmp_path / "apart"), signatures={})
    hps.export_fused(tmp_path / "apart", tmp_path / "fused")
    graph = saved_model_pb2.SavedModel.FromString(
        (tmp_path / "fused" / "saved_model.pb").read_bytes()
    )
    found = [
        n.attr["num_tables"].i if n.op != "HpsLookup" else 1
        for f in graph.meta_graphs[0].graph_def.library.function
        for n in f.node_def
        if n.op.startswith("Hps")
    ]
    assert sorted(found) == sorted(groups)
    return tf.saved_model.load(str(tmp_path / "fused")).call(batches())


def test_a_saved_model_can_be_fused_in_place_and_only_once(two_models, tmp_path):
    module = tf.Module()
    module.call = tf.function(lambda ids: [lookup(ids[0]), lookup(ids[1])], input_signature=[SPECS])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={})
    hps.export_fused(tmp_path / "model", tmp_path / "model")
    assert lookups_in(tmp_path / "model") == {"HpsMultiLookup": 1}
    with pytest.raises(HpsError, match="has no two lookups that can be fused"):
        hps.export_fused(tmp_path / "model", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("function", [lambda ids: ids[0] + 1, lambda ids: lookup(ids[0])])
def test_a_model_without_two_lookups_is_refused(two_models, function):
    with pytest.raises(HpsError, match="the model has no two lookups that can be fused"):
        hps.fuse(function)(batches())


def test_what_is_no_saved_model_is_named(tmp_path):
    with pytest.raises(HpsError, match=rf"SavedModel {tmp_path}: saved_model.pb: No such file"):
        hps.export_fused(tmp_path, tmp_path / "fused")


def test_a_model_that_cannot_be_exported_is_named(tmp_path):
    with pytest.raises(HpsError, match="a function cannot be exported by itself"):
        hps.fuse(lambda ids: lookup(ids[0])).export(tmp_path / "fused")


def test_concurrent_calls_of_one_fused_model_get_their_own_answers(ps_config_file):
    model = Subclassed(ps_config_file)
    expected = [model(batches(seed)).numpy() for seed in range(8)]
    fused = hps.fuse(model)

    def ask(seed):
        for _ in range(20):
            np.testing.assert_array_equal(fused(batches(seed)), expected[seed])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


ONE_THREAD = """
import sys, threading
import numpy as np
import tensorflow as tf
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.threading.set_intra_op_parallelism_threads(1)
import hpsbench.hps as hps
keys, expected = np.load(sys.argv[3]), np.load(sys.argv[4])
ids = [tf.constant(k) for k in keys]
layers = [hps.LookupLayer("m", i, 16, tf.float32, sys.argv[2]) for i in range(len(ids))]
for layer, one, rows in zip(layers, ids, expected):  # eager: one ends before the next begins
    np.testing.assert_array_equal(layer(one), rows)
loaded = [tf.saved_model.load(f"{sys.argv[1]}/{name}") for name in ("apart", "fused")]
failed = []
def ask(call):
    for _ in range(5):
        if not all(np.array_equal(a, e) for a, e in zip(call(ids), expected)):
            failed.append(call)
threads = [threading.Thread(target=ask, args=(m.call,)) for m in loaded for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed
"""


@pytest.mark.parametrize("fuse", [False, True], ids=["tables apart", "tables fused"])
@pytest.mark.parametrize("num_tables", [8, 100])
def test_one_thread_serves_many_tables_eagerly_and_under_concurrent_requests(
    tmp_path, num_tables, fuse
):
    vocabulary, size = 10_000, 16
    tables = [
        seeded_table(np.arange(vocabulary) + i * vocabulary, size, default=-i, seed=i)
        for i in range(num_tables)
    ]
    path = write_model(tmp_path / "tables", tables, fuse=fuse)
    keys = np.random.default_rng(0).integers(0, num_tables * vocabulary, (num_tables, 256, SLOTS))
    keys[:, :200] = keys[:, :200] % vocabulary + np.arange(num_tables)[:, None, None] * vocabulary
    module = tf.Module()
    layers = [hps.LookupLayer("m", i, size, tf.float32, str(path)) for i in range(num_tables)]
    module.call = tf.function(
        lambda ids: [layer(x) for layer, x in zip(layers, ids, strict=True)],
        input_signature=[[tf.TensorSpec((None, SLOTS), tf.int64)] * num_tables],
    )
    tf.saved_model.save(module, str(tmp_path / "apart"))
    hps.export_fused(tmp_path / "apart", tmp_path / "fused")
    np.save(tmp_path / "keys.npy", keys)
    np.save(tmp_path / "rows.npy", [t.answer(k) for t, k in zip(tables, keys, strict=True)])
    arguments = [tmp_path, path, tmp_path / "keys.npy", tmp_path / "rows.npy"]
    result = subprocess.run(
        [sys.executable, "-c", ONE_THREAD, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
