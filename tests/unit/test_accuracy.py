"""The gate that float16 must pass before it is served."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hpsbench.errors import AccuracyError
from hpsbench.models import accuracy
from hpsbench.models.accuracy import Accuracy, auc, check_accuracy
from hpsbench.models.dlrm import numerical_features
from hpsbench.models.kinds.dlrm import DlrmBuild
from hpsbench.models.onnx import half_precision
from hpsbench.models.onnx_engine import Buffer, EngineOptions, OnnxEngine
from hpsbench.models.repository import ModelRepository
from hpsbench.models.variants import hps_onnx_fp16
from hpsbench.presets import load_suite

SLOTS, DIM, SAMPLES = 26, 16, 256


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> DlrmBuild:
    suite = load_suite("smoke", [f"tables.embedding_dim={DIM}", "dlrm.top_mlp=[64, 64, 32, 1]"])
    folder = tmp_path_factory.mktemp("accuracy")
    return DlrmBuild(suite, folder, ModelRepository(folder / "repository"))


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    vectors = generator.uniform(-0.8, 0.8, (SAMPLES, SLOTS, DIM)).astype(np.float32)
    return vectors, numerical_features(SAMPLES, 13, seed=7)


def scaled(model: onnx.ModelProto, node: str, factor: float) -> onnx.ModelProto:
    """Return the model with the weights of one node multiplied."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    weight_name = next(n for n in other.graph.node if n.name == node).input[1]
    weight = next(w for w in other.graph.initializer if w.name == weight_name)
    values = numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(numpy_helper.from_array(values, weight_name))
    return other


def check(single: onnx.ModelProto, half: onnx.ModelProto, sample: tuple) -> Accuracy:
    return check_accuracy(single, half, *sample, seed=1)


def test_nodes_are_named_after_the_layers(build: DlrmBuild) -> None:
    names = [node.name for node in build.dense_onnx.graph.node]
    assert {"bottom_2/Relu", "interaction/MatMul", "top_0/MatMul", "top_3/Sigmoid"} <= set(names)


def test_onnx_answers_as_the_keras_model(build: DlrmBuild, sample: tuple) -> None:
    engine = OnnxEngine(build.dense_onnx.SerializeToString(), EngineOptions())
    vectors, numerical = sample
    given = engine.run({"vectors": vectors, "numerical_features": numerical})["output_1"]
    expected = np.asarray(build.dense([vectors, numerical]))
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)


def test_zeros_fill_the_odd_lengths_up(build: DlrmBuild) -> None:
    # 27 vectors of 16 values, and 16 + 351 inputs of the top MLP.
    shapes = [list(w.dims) for w in build.dense_onnx.graph.initializer]
    assert [368, 64] in shapes
    assert [256, 16 + 5 * 16] in shapes


def test_an_engine_reads_and_writes_bound_memory(build: DlrmBuild, sample: tuple) -> None:
    engine = OnnxEngine(build.dense_onnx.SerializeToString(), EngineOptions())
    assert engine.description.endswith(", CPU")
    vectors, numerical = (np.copy(array[:3]) for array in sample)
    answer = np.full((3, 1), np.nan, np.float32)
    run = engine.bind(
        {"vectors": Buffer.of(vectors), "numerical_features": Buffer.of(numerical)},
        {"output_1": Buffer.of(answer)},
    )
    for shift in (0.0, 0.25):
        vectors += np.float32(shift)
        run()
        expected = np.asarray(build.dense([vectors, numerical]))
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


def test_float16_takes_half_vectors_and_passes(build: DlrmBuild, sample: tuple) -> None:
    half = build.half_dense_onnx
    types = {i.name: i.type.tensor_type.elem_type for i in half.graph.input}
    assert types == {
        "vectors": onnx.TensorProto.FLOAT16,
        "numerical_features": onnx.TensorProto.FLOAT,
    }
    found = check(build.dense_onnx, half, sample)
    assert found.samples == SAMPLES
    assert 1e-6 < found.max_absolute_error < 1e-3, "rounded, and not by much"
    assert 0 < found.mean_absolute_error < found.max_absolute_error
    assert found.float32_auc == pytest.approx(found.float16_auc, rel=1e-3)


@pytest.mark.parametrize("layer", ["bottom_1", "top_0", "top_2"])
def test_an_overflow_names_the_layer_where_it_begins(
    build: DlrmBuild, sample: tuple, layer: str
) -> None:
    # Weights that float16 holds, of whose products it does not hold the sum.
    single = scaled(build.dense_onnx, f"{layer}/MatMul", 60_000)
    with pytest.raises(AccuracyError, match=rf"in float16, {layer}/MatMul gives infinity in \d+"):
        check(single, half_precision(single), sample)


def test_a_weight_beyond_float16_names_the_layer(build: DlrmBuild) -> None:
    single = scaled(build.dense_onnx, "top_1/MatMul", 1e6)
    with pytest.raises(AccuracyError, match=r"float16 cannot hold a weight of top_1/MatMul"):
        half_precision(single)


def test_nan_is_told_from_infinity(build: DlrmBuild, sample: tuple) -> None:
    vectors, numerical = (np.copy(array) for array in sample)
    vectors[3, 5] = np.nan
    with pytest.raises(AccuracyError, match=r"interaction/concat gives NaN"):
        check(build.dense_onnx, build.half_dense_onnx, (vectors, numerical))


def test_an_answer_too_far_off_is_refused(build: DlrmBuild, sample: tuple) -> None:
    other = scaled(build.half_dense_onnx, "top_1/MatMul", 1)
    bias = next(n for n in other.graph.node if n.name == "top_3/Add").input[1]
    weight = next(w for w in other.graph.initializer if w.name == bias)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float16(0.1), bias))
    with pytest.raises(AccuracyError, match=r"up to 0\.0\d+ off float32, over 256 samples"):
        check(build.dense_onnx, other, sample)


def test_an_auc_that_suffers_is_refused() -> None:
    lost = Accuracy(
        samples=9, max_absolute_error=1e-4, mean_absolute_error=1e-5,
        float32_auc=0.8, float16_auc=0.7985,
    )  # fmt: skip
    accuracy._judge(dataclasses.replace(lost, float16_auc=0.7993))
    with pytest.raises(AccuracyError, match=r"AUC of 0\.7985, float32 of 0\.8000"):
        accuracy._judge(lost)


def test_auc_counts_pairs_and_ties_half() -> None:
    scores = np.array([0.1, 0.4, 0.4, 0.9], np.float32)
    assert auc(scores, np.array([False, True, False, True])) == pytest.approx(3.5 / 4)
    with pytest.raises(ValueError, match="labels of both kinds"):
        auc(scores, np.zeros(4, bool))


def test_a_variant_that_fails_the_gate_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: DlrmBuild, sample: tuple
) -> None:
    failing = DlrmBuild(build.suite, tmp_path, ModelRepository(tmp_path / "repository"))
    object.__setattr__(failing, "dense_onnx", scaled(build.dense_onnx, "top_1/MatMul", 1e6))
    object.__setattr__(failing, "table", type("Table", (), {"rows": np.zeros((20_000, DIM), "f4")}))
    with pytest.raises(AccuracyError, match=r"hps_onnx_fp16 is not served: .*top_1/MatMul"):
        hps_onnx_fp16.export(failing)
    assert not (tmp_path / "repository").exists()
