"""Programs as users write them, under the Keras that TF_USE_LEGACY_KERAS chooses.

Run by `test_keras_versions.py`, once for each Keras. A CPU is two devices here, for strategies.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from lookup_models import Table, seeded_table, write_model

import hpsbench.hps as hps
from hpsbench.hps import session
from hpsbench.hps.configuration import Configuration, read_configuration, write_configuration

LEGACY = os.environ.get("TF_USE_LEGACY_KERAS") == "1"
DIM, SLOTS = 16, 3
USERS = seeded_table(np.arange(400)[::-1] * 7 - 100, DIM, default=0.5, seed=1)
ITEMS = seeded_table(np.arange(300), DIM, seed=2)
TABLES = [USERS, ITEMS]

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(autouse=True)
def _nothing_initialised():
    session.reset()
    yield
    session.reset()


@pytest.fixture(scope="module")
def ps_config_file(tmp_path_factory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model"), TABLES))


def keys_of(table: Table, batch: int = 5, *, seed: int = 0) -> np.ndarray:
    """Return int64[batch, SLOTS] keys, some of which the table lacks."""
    rng = np.random.default_rng(seed)
    keys = rng.choice(table.keys, (batch, SLOTS))
    return np.where(rng.random(keys.shape) < 0.2, 10**9, keys)


def lookup(table_id: int, **options) -> hps.LookupLayer:
    return hps.LookupLayer("m", table_id, DIM, tf.float32, **options)


def test_layers_are_of_the_keras_that_was_chosen(ps_config_file):
    assert isinstance(lookup(0), tf.keras.layers.Layer)
    assert tf.keras.layers.Layer.__module__.partition(".")[0] == ("tf_keras" if LEGACY else "keras")


class TwoTables(tf.keras.Model):
    """Two lookups and a dense layer, as the notebooks subclass `tf.keras.models.Model`."""

    def __init__(self, **options):
        super().__init__()
        self.users, self.items = lookup(0, **options), lookup(1, **options)
        self.dense = tf.keras.layers.Dense(2, kernel_initializer="ones")

    def call(self, inputs):
        users, items = inputs
        rows = tf.concat([self.users(users), self.items(items)], axis=-1)
        return self.dense(tf.reshape(rows, [-1, 2 * SLOTS * DIM]))


def expected_of_two(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    rows = np.concatenate([USERS.answer(users), ITEMS.answer(items)], axis=-1)
    return np.repeat(rows.reshape(len(users), -1).sum(axis=1)[:, None], 2, axis=1)


def check_two(answer, users: np.ndarray, items: np.ndarray) -> None:
    np.testing.assert_allclose(answer, expected_of_two(users, items), rtol=1e-4, atol=1e-4)


def functional(**options) -> tf.keras.Model:
    ids = [tf.keras.Input((SLOTS,), dtype="int64", name=name) for name in ("users", "items")]
    rows = [lookup(i, **options)(tensor) for i, tensor in enumerate(ids)]
    flat = tf.keras.layers.Flatten()(tf.keras.layers.Concatenate()(rows))
    return tf.keras.Model(ids, tf.keras.layers.Dense(2, kernel_initializer="ones")(flat))


@pytest.mark.parametrize("make", [TwoTables, functional], ids=["subclassed", "functional"])
@pytest.mark.parametrize("init", ["explicit", "implicit"])
def test_a_model_answers_and_predicts(ps_config_file, make, init):
    options = {}
    if init == "explicit":
        assert hps.Init(ps_config_file=ps_config_file, global_batch_size=8) == "OK"
    else:
        options = {"ps_config_file": ps_config_file, "global_batch_size": 8}
    model = make(**options)
    users, items = keys_of(USERS), keys_of(ITEMS)
    check_two(model([tf.constant(users), tf.constant(items)]), users, items)
    check_two(model.predict([users, items], batch_size=2, verbose=0), users, items)
    check_two(tf.function(model)([tf.constant(users), tf.constant(items)]), users, items)


def test_a_sequential_model_answers(ps_config_file):
    hps.Init(ps_config_file=ps_config_file)
    model = tf.keras.Sequential([
        tf.keras.Input((SLOTS,), dtype="int64"), lookup(1), tf.keras.layers.Flatten()
    ])  # fmt: skip
    keys = keys_of(ITEMS)
    answer = model.predict(keys, verbose=0)
    np.testing.assert_array_equal(answer, ITEMS.answer(keys).reshape(len(keys), -1))


def test_a_model_trains_what_is_dense_and_the_rows_stay(ps_config_file):
    hps.Init(ps_config_file=ps_config_file)
    model = functional()
    model.compile("sgd", "mse")
    keys = [keys_of(USERS, 16), keys_of(ITEMS, 16)]
    losses = model.fit(keys, np.zeros((16, 2), np.float32), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(lookup(0)(keys[0]), USERS.answer(keys[0]))


def test_a_model_is_made_again_from_its_configuration(ps_config_file):
    hps.Init(ps_config_file=ps_config_file)
    model = functional()
    again = type(model).from_config(
        model.get_config(), custom_objects={"LookupLayer": hps.LookupLayer}
    )
    again.set_weights(model.get_weights())
    users, items = keys_of(USERS), keys_of(ITEMS)
    check_two(again([tf.constant(users), tf.constant(items)]), users, items)


SERVE = """
import sys
import numpy as np
import tensorflow as tf
import hpsbench.hps as hps
model = tf.saved_model.load(sys.argv[1])
serve = model.signatures["serving_default"]
names = sorted(serve.structured_input_signature[1])
keys = np.load(sys.argv[2])
answer = serve(**{name: tf.constant(keys[name]) for name in names})
np.save(sys.argv[3], next(iter(answer.values())).numpy())
"""


@pytest.mark.parametrize("way", ["as Keras saves", "tf.saved_model.save"])
def test_a_saved_model_is_served_in_another_process(tmp_path, way):
    """Neither file nor tables exist while the model is traced and saved."""
    path = tmp_path / "later" / "ps.json"
    model = functional(ps_config_file=str(path), global_batch_size=8)
    if way == "tf.saved_model.save":
        signature = [tf.TensorSpec([None, SLOTS], tf.int64, name=n) for n in ("users", "items")]
        serve = tf.function(lambda users, items: {"out": model([users, items])})
        module = tf.Module()
        module.model = model
        tf.saved_model.save(
            module, tmp_path / "saved", signatures=serve.get_concrete_function(*signature)
        )
    elif LEGACY:
        model.save(tmp_path / "saved", save_format="tf")
    else:
        model.export(tmp_path / "saved", verbose=False)
    assert hps.statistics() == {}
    write_model(tmp_path / "later", TABLES)
    keys = {"users": keys_of(USERS), "items": keys_of(ITEMS)}
    np.savez(tmp_path / "keys.npz", **keys)
    files = [tmp_path / name for name in ("saved", "keys.npz", "answer.npy")]
    result = subprocess.run(
        [sys.executable, "-c", SERVE, *files], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    check_two(np.load(tmp_path / "answer.npy"), keys["users"], keys["items"])


def test_a_saved_keras_model_is_loaded_as_one(tmp_path, ps_config_file):
    model = functional(ps_config_file=ps_config_file)
    name = tmp_path / ("saved" if LEGACY else "model.keras")
    model.save(name)
    again = tf.keras.models.load_model(name, compile=False)
    users, items = keys_of(USERS), keys_of(ITEMS)
    check_two(again([tf.constant(users), tf.constant(items)]), users, items)


def test_a_function_with_a_signature_looks_up(ps_config_file):
    hps.Init(ps_config_file=ps_config_file)
    one = lookup(0)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def rows(ids):
        return tf.reduce_sum(one(ids), axis=1)

    keys = keys_of(USERS).astype(np.int32)
    np.testing.assert_allclose(rows(tf.constant(keys)), USERS.answer(keys).sum(axis=1), rtol=1e-5)


def test_models_of_one_file_answer_side_by_side(tmp_path):
    """Two models with tables of the same ids, and other rows."""
    other = seeded_table(np.arange(300), DIM, seed=9)
    first = read_configuration(write_model(tmp_path / "a", [ITEMS], name="a"))
    second = read_configuration(write_model(tmp_path / "b", [other], name="b"))
    models = Configuration(models=first.models + second.models)
    hps.Init(ps_config_file=str(write_configuration(tmp_path / "ps.json", models)))
    keys = keys_of(ITEMS)
    for name, table in [("a", ITEMS), ("b", other), ("a", ITEMS)]:
        answer = hps.LookupLayer(name, 0, DIM, tf.float32)(keys)
        np.testing.assert_array_equal(answer, table.answer(keys))
    assert set(hps.statistics()) == {"a", "b"}


@pytest.mark.parametrize("max_norm", [None, 2.5])
def test_dense_lookups_equal_tensorflow(ps_config_file, max_norm):
    hps.Init(ps_config_file=ps_config_file)
    ids = np.random.default_rng(3).integers(0, 300, (4, SLOTS, 2))
    native = tf.nn.embedding_lookup(ITEMS.rows, ids, max_norm=max_norm)
    np.testing.assert_array_equal(lookup(1)(ids, max_norm=max_norm), native)


@pytest.mark.parametrize("combiner", [None, "mean", "sum", "sqrtn"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("max_norm", [None, 2.5])
def test_sparse_lookups_equal_tensorflow(ps_config_file, combiner, weighted, max_norm):
    hps.Init(ps_config_file=ps_config_file)
    indices = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
    ids = tf.SparseTensor(indices, np.array([5, 5, 299, 0, 17, 5]), (3, 3))
    weights = tf.SparseTensor(indices, np.linspace(0.1, 2, 6, dtype=np.float32), (3, 3))
    weights = weights if weighted else None
    layer = hps.SparseLookupLayer("m", 1, DIM, tf.float32)
    native = tf.nn.embedding_lookup_sparse(
        ITEMS.rows, ids, weights, combiner=combiner, max_norm=max_norm
    )
    ours = layer(ids, weights, combiner=combiner, max_norm=max_norm)
    np.testing.assert_array_equal(ours, native)


NOTEBOOK = """
import {module} as hps
import numpy as np
import tensorflow as tf

args = dict()
args["slot_num"] = 3
args["embed_vec_size"] = 16
args["global_batch_size"] = 8
args["ps_config_file"] = ps_config_file
args["np_key_type"] = np.int64
args["tf_key_type"] = tf.int64
args["tf_vector_type"] = tf.float32


class InferenceModel(tf.keras.models.Model):
    def __init__(self, slot_num, embed_vec_size, dense_model_path, **kwargs):
        super(InferenceModel, self).__init__(**kwargs)
        self.slot_num = slot_num
        self.embed_vec_size = embed_vec_size
        self.lookup_layer = hps.LookupLayer(
            model_name="m",
            table_id=0,
            emb_vec_size=self.embed_vec_size,
            emb_vec_dtype=args["tf_vector_type"],
        )
        self.dense_model = tf.keras.models.load_model(dense_model_path)

    def call(self, inputs):
        embeddings = tf.reshape(
            self.lookup_layer(inputs), shape=[-1, self.slot_num * self.embed_vec_size]
        )
        logit = self.dense_model(embeddings)
        return logit, embeddings

    def summary(self):
        inputs = tf.keras.Input(shape=(self.slot_num,), dtype=args["tf_key_type"])
        model = tf.keras.models.Model(inputs=inputs, outputs=self.call(inputs))
        return model.summary(print_fn=lambda *_, **__: None)


def inference_with_saved_model(args):
    hps.Init(global_batch_size=args["global_batch_size"], ps_config_file=args["ps_config_file"])
    model = InferenceModel(args["slot_num"], args["embed_vec_size"], dense_model_path)
    if legacy:  # Keras 3 lets no function of TensorFlow, such as tf.reshape, take its inputs
        model.summary()
    keys = args["np_key_type"](keys_to_ask)
    logit, embeddings = model(keys)
    return embeddings.numpy()


embeddings = inference_with_saved_model(args)
"""


@pytest.mark.parametrize("module", ["hpsbench.hps", "hierarchical_parameter_server"])
def test_the_original_s_notebook_runs_with_its_import_changed(
    tmp_path, ps_config_file, monkeypatch, module
):
    # What the documentation says of programs whose import cannot be changed.
    monkeypatch.setitem(sys.modules, "hierarchical_parameter_server", hps)
    dense = tf.keras.Sequential([tf.keras.Input((SLOTS * DIM,)), tf.keras.layers.Dense(1)])
    dense_model_path = str(tmp_path / ("dense" if LEGACY else "dense.keras"))
    dense.save(dense_model_path)
    keys = keys_of(USERS)
    names = {
        "ps_config_file": ps_config_file,
        "dense_model_path": dense_model_path,
        "keys_to_ask": keys,
        "legacy": LEGACY,
    }
    exec(compile(NOTEBOOK.format(module=module), "notebook", "exec"), names)
    np.testing.assert_array_equal(
        names["embeddings"], USERS.answer(keys).reshape(len(keys), SLOTS * DIM)
    )


def test_mirrored_replicas_look_up_each_its_part(ps_config_file):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        hps.Init(ps_config_file=ps_config_file, global_batch_size=8)
        model = TwoTables()
    users, items = keys_of(USERS, 8), keys_of(ITEMS, 8)
    dataset = tf.data.Dataset.from_tensor_slices((users, items)).batch(8)

    @tf.function
    def step(batch):
        return strategy.run(lambda users, items: model([users, items]), args=batch)

    [batch] = strategy.experimental_distribute_dataset(dataset)
    parts = strategy.experimental_local_results(step(batch))
    assert [len(part) for part in parts] == [4, 4]
    check_two(np.concatenate([part.numpy() for part in parts]), users, items)


def test_both_logical_devices_were_there():
    assert len(tf.config.list_logical_devices("CPU")) == 2, Path(__file__).name
