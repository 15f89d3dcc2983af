"""The hybrid's SavedModel keeps each variable's device, and gathers rows where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from hpsbench.models.build import Build, build_repository
from hpsbench.models.variants import select_variants
from hpsbench.presets import load_suite

NAME = "native_tf_hybrid"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    suite = load_suite("smoke", ["tables.num_embeddings=500", "tables.embedding_dim=8"])
    return build_repository(suite, select_variants([NAME]), tmp_path_factory.mktemp("hybrid"))


def load(build: Build) -> Any:
    path: Path = build.repository.version_folder(NAME) / "model.savedmodel"
    policy = tf.saved_model.experimental.VariablePolicy.SAVE_VARIABLE_DEVICES
    options = tf.saved_model.LoadOptions(experimental_variable_policy=policy)
    return tf.saved_model.load(str(path), options=options)


def test_the_rows_are_saved_with_their_device(build: Build) -> None:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = build.repository.version_folder(NAME) / "model.savedmodel" / "saved_model.pb"
    (graph,) = SavedModel.FromString(path.read_bytes()).meta_graphs
    variables = [n.variable for n in graph.object_graph_def.nodes if n.HasField("variable")]
    (table,) = [v for v in variables if [d.size for d in v.shape.dim] == [500, 8]]
    assert table.device.endswith("device:CPU:0")


def test_rows_are_gathered_out_of_the_variable(build: Build) -> None:
    # Not read as a whole first: on a GPU all of the table would be copied for each request.
    graph = load(build).signatures["serving_default"].graph.as_graph_def()
    operations = {n.op for f in graph.library.function for n in f.node_def}
    assert "ResourceGather" in operations


@pytest.mark.gpu
def test_the_rows_are_loaded_on_the_cpu_and_the_mlps_on_the_gpu(build: Build) -> None:
    loaded = load(build)
    devices = {tuple(v.shape): v.device.rpartition("device:")[2] for v in loaded.weights}
    assert devices.pop((500, 8)) == "CPU:0"
    assert set(devices.values()) == {"GPU:0"}
    answer = loaded.signatures["serving_default"](
        categorical_features=tf.zeros((3, 26), tf.int32),
        numerical_features=tf.zeros((3, 13)),
    )
    assert np.isfinite(answer["output_1"].numpy()).all()
