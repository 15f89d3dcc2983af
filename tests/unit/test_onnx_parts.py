"""The dense part as two ONNX models, with the interaction in NumPy between them."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hpsbench.config import DlrmConfig
from hpsbench.models.dlrm import dot_interaction, numerical_features, seeded_weights
from hpsbench.models.keras_dlrm import dense_model
from hpsbench.models.onnx import convert, half_precision
from hpsbench.models.onnx_engine import EngineOptions, OnnxEngine
from hpsbench.models.onnx_parts import Inseparable, OnnxParts, split_at_interaction

SAMPLES, FEATURES = 100, 13
#: Slots, dim and the multiple that lengths are filled up to: with zero vectors (26, 8 and 5 zeros
#: beside) and without.
SHAPES = {"filled up": (26, 128, 8), "as they are": (26, 16, 1), "nothing to fill": (7, 16, 8)}
#: Of probabilities: the same sums in another order, or rounded to half precision in between.
TOLERANCES = {"float32": 1e-6, "float16": 1e-3}


@functools.cache
def exported(slots: int, dim: int, multiple: int) -> onnx.ModelProto:
    dlrm = DlrmConfig(num_slots=slots, bottom_mlp=(24,), top_mlp=(32, 1))
    return convert(dense_model(dlrm, seeded_weights(dlrm, dim), dim, multiple=multiple))


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def single(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return exported(*request.param)


@pytest.fixture(scope="module")
def filled_up() -> onnx.ModelProto:
    return exported(*SHAPES["filled up"])


def engine(model: onnx.ModelProto) -> OnnxEngine:
    return OnnxEngine(model.SerializeToString(), EngineOptions())


def joined(parts: OnnxParts, dense: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return what the GPU library computes: in float32, rounded once."""
    pairs = dot_interaction(dense.astype(np.float32), vectors.astype(np.float32))
    return np.pad(pairs, [(0, 0), (0, parts.width - pairs.shape[1])]).astype(parts.dtype)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_parts_with_the_interaction_between_answer_as_the_whole(
    single: onnx.ModelProto, precision: str
) -> None:
    model = half_precision(single) if precision == "float16" else single
    before = model.SerializeToString()
    parts = split_at_interaction(model)
    assert model.SerializeToString() == before
    assert parts.dtype == precision

    numerical = numerical_features(SAMPLES, FEATURES, seed=1)
    random = np.random.default_rng(2)
    vectors = random.uniform(-0.5, 0.5, (SAMPLES, parts.slots, parts.dim)).astype(parts.dtype)
    features = {"numerical_features": numerical}
    (dense,) = engine(parts.bottom).run(features).values()
    assert dense.shape == (SAMPLES, parts.dim)
    assert dense.any()
    inputs = {parts.joined: joined(parts, dense, vectors)}
    (given,) = engine(parts.top).run(inputs).values()
    (whole,) = engine(model).run({**features, "vectors": vectors}).values()
    assert given.dtype == whole.dtype == np.float32
    assert np.ptp(whole) > 100 * TOLERANCES[precision]
    np.testing.assert_allclose(given, whole, rtol=0, atol=TOLERANCES[precision])


def test_zero_vectors_and_what_they_cost_are_left_out(filled_up: onnx.ModelProto) -> None:
    parts = split_at_interaction(filled_up)
    assert (parts.slots, parts.dim, parts.width) == (26, 128, 480)
    kernels = [w.dims for w in parts.bottom.graph.initializer if len(w.dims) == 2]
    assert sorted(list(dims) for dims in kernels) == [[13, 24], [24, 128]]
    assert {n.op_type for n in parts.top.graph.node} == {"MatMul", "Add", "Relu", "Sigmoid"}


def changed(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def set_weight(model: onnx.ModelProto, ending: str, place: tuple[int, ...], value: float) -> None:
    (weight,) = [w for w in model.graph.initializer if w.name.endswith(ending)]
    values = numpy_helper.to_array(weight).copy()
    values[place] = value
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def test_pairs_in_another_order_are_no_dot_interaction(filled_up: onnx.ModelProto) -> None:
    model = changed(filled_up)
    set_weight(model, "GatherV2/indices:0", (350,), 6 * 32)  # the product of the first two
    with pytest.raises(Inseparable, match="it computes no dot interaction"):
        split_at_interaction(model)


@pytest.mark.parametrize(
    ("weight", "place"), [("bottom_1_1/BiasAdd/ReadVariableOp:0", (128,)),
                          ("bottom_1_1/Cast/ReadVariableOp:0", (3, 767))],
)  # fmt: skip
def test_vectors_that_are_not_zeros_are_not_left_out(
    filled_up: onnx.ModelProto, weight: str, place: tuple[int, ...]
) -> None:
    model = changed(filled_up)
    set_weight(model, weight, place, 1e-3)
    with pytest.raises(Inseparable, match="more than 128 units that are not zero"):
        split_at_interaction(model)


def test_a_top_that_asks_for_more_than_the_interaction_is_not_split(
    filled_up: onnx.ModelProto,
) -> None:
    model = changed(filled_up)
    (last,) = [n for n in model.graph.node if n.name == "top_1/MatMul"]
    model.graph.node.insert(0, onnx.helper.make_node("Relu", ["vectors"], ["kept"], "kept"))
    model.graph.node.append(onnx.helper.make_node("Add", [last.output[0], "kept"], ["more"]))
    (after,) = [n for n in model.graph.node if n.name == "top_1/Add"]
    after.input[0] = "more"
    model.graph.node.remove(after)
    model.graph.node.append(after)
    with pytest.raises(Inseparable):
        split_at_interaction(model)


def test_a_model_of_other_nodes_is_not_split(filled_up: onnx.ModelProto) -> None:
    for removed in ("interaction/Reshape", "dense_and_pairs/concat"):
        model = changed(filled_up)
        for node in model.graph.node:
            node.name = node.name.replace(removed, "other")
        with pytest.raises(Inseparable, match=f"it has no node {removed}"):
            split_at_interaction(model)
    model = changed(filled_up)
    del model.graph.input[:]
    with pytest.raises(Inseparable, match="no input vectors"):
        split_at_interaction(model)
