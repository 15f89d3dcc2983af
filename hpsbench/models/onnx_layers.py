"""The weights of DLRM's two MLPs, out of the ONNX models that compute them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from hpsbench.models.onnx import OUTPUT
from hpsbench.models.onnx_parts import NUMERICAL, Inseparable, OnnxParts


@dataclass(frozen=True, kw_only=True)
class OnnxLayer:
    """One fully connected layer: kernel [inputs, units] and bias [units], of the model's type."""

    kernel: npt.NDArray[Any]
    bias: npt.NDArray[Any]

    @property
    def inputs(self) -> int:
        return int(self.kernel.shape[0])

    @property
    def units(self) -> int:
        return int(self.kernel.shape[1])


@dataclass(frozen=True, kw_only=True)
class MlpLayers:
    """Layers with ReLU behind each; `last` is one unit with a sigmoid behind it."""

    bottom: tuple[OnnxLayer, ...]
    top: tuple[OnnxLayer, ...]
    last: OnnxLayer


def mlp_layers(parts: OnnxParts) -> MlpLayers:
    """Return the layers that `parts` consist of. Raises Inseparable where they have other nodes."""
    bottom = _layers(parts, parts.bottom, NUMERICAL, parts.dense)
    top = _layers(parts, parts.top, parts.joined, OUTPUT)
    *hidden, (last, activation) = top
    if any(kind != "Relu" for _, kind in (*bottom, *hidden)) or activation != "Sigmoid":
        raise Inseparable("its layers are not ReLU's, with a sigmoid behind the last")
    if last.units != 1:
        raise Inseparable(f"its last layer has {last.units} units")
    return MlpLayers(
        bottom=tuple(layer for layer, _ in bottom),
        top=tuple(layer for layer, _ in hidden),
        last=last,
    )


def _layers(
    parts: OnnxParts, part: onnx.ModelProto, first: str, end: str
) -> list[tuple[OnnxLayer, str]]:
    """Return the layers from value `first` to `end`, with their activations."""
    nodes = _chain(part, first, end)
    # Features come, and probabilities go, as float32.
    if nodes and nodes[0][0] == "Cast":
        nodes = nodes[1:]
    if nodes and nodes[-1][0] == "Cast":
        nodes = nodes[:-1]
    found = []
    for place in range(0, len(nodes), 3):
        kinds, constants = zip(*nodes[place : place + 3], strict=True)
        if kinds[:2] != ("MatMul", "Add") or kinds[2:] not in (("Relu",), ("Sigmoid",)):
            raise Inseparable(f"{end} is computed by {', '.join(kinds)}, no fully connected layer")
        kernel, bias = constants[0], constants[1]
        if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or kernel.dtype != parts.dtype:
            raise Inseparable(f"{end}: a layer of {kernel.dtype}{kernel.shape} and {bias.shape}")
        found.append((OnnxLayer(kernel=kernel, bias=bias), kinds[2]))
    if not found:
        raise Inseparable(f"{end} is computed without a layer")
    return found


def _chain(part: onnx.ModelProto, first: str, end: str) -> list[tuple[str, npt.NDArray[Any]]]:
    """Return each node's kind and its constant, if any; each takes what the one before gives."""
    weights = {w.name: numpy_helper.to_array(w) for w in part.graph.initializer}
    value, found = first, []
    for node in part.graph.node:
        given, *others = node.input
        constants = [weights[name] for name in others if name in weights]
        if given != value or len(constants) != len(others) or len(others) > 1:
            raise Inseparable(f"{node.name} is no link of a chain from {first} to {end}")
        found.append((node.op_type, constants[0] if constants else np.empty(0)))
        value = node.output[0]
    if value != end:
        raise Inseparable(f"{end} is not what the last node computes")
    return found
