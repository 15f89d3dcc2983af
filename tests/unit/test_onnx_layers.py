"""The weights of the MLPs out of their ONNX models: nothing else may be computed there."""

from __future__ import annotations

import functools
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpsbench.config import DlrmConfig
from hpsbench.models.dlrm import seeded_weights
from hpsbench.models.keras_dlrm import dense_model
from hpsbench.models.onnx import convert, half_precision
from hpsbench.models.onnx_layers import MlpLayers, mlp_layers
from hpsbench.models.onnx_parts import Inseparable, OnnxParts, split_at_interaction

DLRM = DlrmConfig(bottom_mlp=(24, 40), top_mlp=(32, 8, 1))
DIM = 128


@functools.cache
def exported() -> onnx.ModelProto:
    return convert(dense_model(DLRM, seeded_weights(DLRM, DIM), DIM, multiple=8))


@pytest.fixture
def parts() -> OnnxParts:
    return split_at_interaction(exported())


def all_of(layers: MlpLayers) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x.kernel, x.bias) for x in (*layers.bottom, *layers.top, layers.last)]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_layers_are_those_that_the_model_was_made_of(precision: str) -> None:
    model = half_precision(exported()) if precision == "float16" else exported()
    layers = mlp_layers(split_at_interaction(model))
    weights = seeded_weights(DLRM, DIM)
    assert [len(weights.bottom), len(weights.top) - 1] == [len(layers.bottom), len(layers.top)]
    found = all_of(layers)
    for (kernel, bias), made_of in zip(found, (*weights.bottom, *weights.top), strict=True):
        assert kernel.dtype == bias.dtype == precision
        zeros = len(kernel) - len(made_of.kernel)  # behind the 479 inputs of the top
        expected = np.pad(made_of.kernel, [(0, zeros), (0, 0)]).astype(precision)
        np.testing.assert_allclose(kernel, expected, rtol=0, atol=6e-8)
        np.testing.assert_allclose(bias, made_of.bias.astype(precision), rtol=0, atol=6e-8)


def node(part: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = [n for n in part.graph.node if n.name == name]
    return found


def refused(parts: OnnxParts, problem: str) -> None:
    with pytest.raises(Inseparable, match=re.escape(problem)):
        mlp_layers(parts)


def test_another_activation_is_no_such_layer(parts: OnnxParts) -> None:
    node(parts.top, "top_1/Relu").op_type = "Tanh"
    refused(parts, "output_1 is computed by MatMul, Add, Tanh, no fully connected layer")


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [("top_1/BiasAdd", "Sub", "MatMul, Sub, Relu"), ("top_1/MatMul", "Mul", "Mul, Add, Relu")],
)
def test_another_operation_is_no_such_layer(
    parts: OnnxParts, name: str, kind: str, found: str
) -> None:
    node(parts.top, name).op_type = kind
    refused(parts, f"output_1 is computed by {found}, no fully connected layer")


def test_activations_must_be_where_dlrm_has_them(parts: OnnxParts) -> None:
    node(parts.bottom, "bottom_0/Relu").op_type = "Sigmoid"
    refused(parts, "its layers are not ReLU's, with a sigmoid behind the last")


def test_a_last_layer_without_a_sigmoid_is_refused(parts: OnnxParts) -> None:
    node(parts.top, "top_2/Sigmoid").op_type = "Relu"
    refused(parts, "its layers are not ReLU's, with a sigmoid behind the last")


def test_a_layer_that_takes_more_than_the_last_one_is_refused(parts: OnnxParts) -> None:
    given = node(parts.top, "top_1/MatMul").output[0]
    node(parts.top, "top_1/BiasAdd").input[1] = given
    refused(parts, f"top_1/BiasAdd is no link of a chain from {parts.joined} to output_1")


def test_a_layer_that_skips_another_is_refused(parts: OnnxParts) -> None:
    node(parts.top, "top_1/MatMul").input[0] = parts.joined
    refused(parts, "top_1/MatMul is no link of a chain")


def test_a_value_behind_the_output_is_refused(parts: OnnxParts) -> None:
    parts.top.graph.node.append(helper.make_node("Relu", ["output_1"], ["more"], "more"))
    refused(parts, "output_1 is not what the last node computes")


def test_a_cast_between_layers_is_refused(parts: OnnxParts) -> None:
    graph = parts.bottom.graph
    (at,) = [i for i, n in enumerate(graph.node) if n.name == "bottom_1/MatMul"]
    given = graph.node[at].input[0]
    graph.node.insert(at, helper.make_node("Cast", [given], ["cut"], "cut", to=TensorProto.FLOAT))
    node(parts.bottom, "bottom_1/MatMul").input[0] = "cut"
    refused(parts, "is computed by Cast, MatMul, Add, no fully connected layer")


@pytest.mark.parametrize(
    ("ending", "shape", "problem"),
    [
        ("top_2_1/Cast/ReadVariableOp:0", (8, 2), "float32(8, 2) and (1,)"),
        ("top_1_1/BiasAdd/ReadVariableOp:0", (1,), "float32(32, 8) and (1,)"),
        ("top_1_1/Cast/ReadVariableOp:0", (1, 32, 8), "float32(1, 32, 8) and (8,)"),
    ],
)
def test_weights_of_other_shapes_are_refused(
    parts: OnnxParts, ending: str, shape: tuple[int, ...], problem: str
) -> None:
    (weight,) = [w for w in parts.top.graph.initializer if w.name.endswith(ending)]
    weight.CopyFrom(numpy_helper.from_array(np.zeros(shape, np.float32), weight.name))
    refused(parts, problem)


def test_several_outputs_are_refused(parts: OnnxParts) -> None:
    for weight in parts.top.graph.initializer:
        if "top_2_1" in weight.name:
            values = np.repeat(numpy_helper.to_array(weight), 2, axis=-1)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    refused(parts, "its last layer has 2 units")
