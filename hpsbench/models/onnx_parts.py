"""DLRM's dense part as two ONNX models, for whoever computes the interaction between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.utils import Extractor

from hpsbench.errors import BenchError
from hpsbench.models.dlrm import dot_interaction
from hpsbench.models.onnx import OUTPUT, VECTORS

NUMERICAL = "numerical_features"
#: The nodes, named after Keras layers, that take the dense vectors and give what the top takes.
_FIRST_NODE, _LAST_NODE = "interaction/Reshape", "dense_and_pairs/concat"
_CHECKED_SAMPLES = 3


class Inseparable(BenchError):
    """The model has no bottom and top with DLRM's dot interaction between them."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, hint="run the model as a whole")


@dataclass(frozen=True, kw_only=True)
class OnnxParts:
    """What is before and what is behind the dot interaction of `slots` vectors.

    `bottom` computes `dense` [n, dim] of the numerical features, and `top` the probabilities of
    `joined` [n, width]: the dense vector, the products of every pair, and zeros.
    """

    bottom: onnx.ModelProto
    top: onnx.ModelProto
    dense: str
    joined: str
    slots: int
    dim: int
    width: int
    dtype: np.dtype[Any]


def split_at_interaction(model: onnx.ModelProto) -> OnnxParts:
    """Return the parts of a model that `hpsbench.models.onnx` made, without its zero vectors.

    What was between them is run on a few samples of small integers, and must give exactly what
    `dot_interaction` does, and zeros. Raises Inseparable where it does not, and for other models.
    """
    dtype, slots, dim = _vectors(model)
    dense, joined = _node(model, _FIRST_NODE).input[0], _node(model, _LAST_NODE).output[0]
    bottom = _extracted(model, [NUMERICAL], dense)
    dense_width = _narrow(bottom, dense, dim)
    between = _extracted(model, [dense, VECTORS], joined)

    some = np.random.default_rng(0).integers(-1, 2, (_CHECKED_SAMPLES, 1 + slots, dim))
    first, vectors = some[:, 0].astype(dtype), some[:, 1:].astype(dtype)
    widened = np.pad(first, [(0, 0), (0, dense_width - dim)])
    (computed,) = ReferenceEvaluator(between).run(None, {dense: widened, VECTORS: vectors})
    given, expected = np.asarray(computed), dot_interaction(first, vectors)
    width = given.shape[1]
    zeros = width - expected.shape[1]
    if zeros < 0 or not np.array_equal(given, np.pad(expected, [(0, 0), (0, zeros)])):
        raise Inseparable(f"from {_FIRST_NODE} to {_LAST_NODE} it computes no dot interaction")
    return OnnxParts(
        bottom=bottom,
        top=_extracted(model, [joined], OUTPUT),
        dense=dense,
        joined=joined,
        slots=slots,
        dim=dim,
        width=width,
        dtype=dtype,
    )


def _vectors(model: onnx.ModelProto) -> tuple[np.dtype[Any], int, int]:
    for value in model.graph.input:
        if value.name == VECTORS:
            tensor = value.type.tensor_type
            lengths = [d.dim_value for d in tensor.shape.dim[1:]]
            if len(lengths) == 2 and all(lengths):
                slots, dim = lengths
                return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), slots, dim
    raise Inseparable(f"it has no input {VECTORS} of [n, slots, dim]")


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [node for node in model.graph.node if node.name == name]
    if not found:
        raise Inseparable(f"it has no node {name}")
    return found[0]


def _extracted(model: onnx.ModelProto, inputs: list[str], output: str) -> onnx.ModelProto:
    """Return the nodes from these values to that one, as a model of its own."""
    extractor = Extractor(model)
    ends = {v.name: v for v in (*model.graph.input, *model.graph.output)}
    vectors = ends[VECTORS].type.tensor_type.elem_type
    # No other values' shapes: those of zero vectors are outdated.
    extractor.value_infos = {
        name: ends.get(name) or helper.make_tensor_value_info(name, vectors, ["batch", None])
        for name in (*inputs, output)
    }
    part: onnx.ModelProto = extractor.extract_model(inputs, [output])
    del part.graph.value_info[:]
    try:
        onnx.checker.check_model(part)
    except onnx.checker.ValidationError as error:
        # Nodes that ask for other values than these.
        raise Inseparable(f"{output} is not computed of {', '.join(inputs)} alone") from error
    return part


def _narrow(bottom: onnx.ModelProto, dense: str, dim: int) -> int:
    """Leave the last layer `dim` units, and return how many it had; all others must be zeros."""
    weights = {weight.name: weight for weight in bottom.graph.initializer}
    producers = {value: node for node in bottom.graph.node for value in node.output}
    layer, value = [], dense
    for kind in ("Relu", "Add", "MatMul"):
        node = producers.get(value)
        if node is None or node.op_type != kind:
            raise Inseparable(f"{dense} is not computed by a fully connected layer with Relu")
        layer += [weights[name] for name in node.input[1:] if name in weights]
        value = node.input[0]
    if len(layer) != 2:
        raise Inseparable(f"{dense} is computed without a kernel and a bias that are constant")
    for weight in layer:
        values = numpy_helper.to_array(weight)
        if values.shape[-1] < dim or values[..., dim:].any():
            raise Inseparable(f"{weight.name} has more than {dim} units that are not zero")
        weight.CopyFrom(numpy_helper.from_array(values[..., :dim].copy(), weight.name))
    return int(values.shape[-1])
