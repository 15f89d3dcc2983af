"""The dense part of DLRM as an ONNX model, in single and in half precision."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from hpsbench.errors import AccuracyError

if TYPE_CHECKING:
    import keras

#: The newest that tf2onnx 1.17 converts Keras 3 models to.
OPSET = 18
VECTORS, OUTPUT = "vectors", "output_1"
#: The least positive number that float16 has.
_LEAST_HALF = 5.97e-8


def convert(dense: keras.Model) -> onnx.ModelProto:
    """Return the model (`vectors` float32[n, slots, dim], `numerical_features`) -> `output_1`.

    Nodes are named after the Keras layers that they come from: `top_1/MatMul`.
    """
    import tensorflow as tf
    import tf2onnx

    specs = [tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in dense.inputs]

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def serve(vectors: tf.Tensor, numerical_features: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: dense([vectors, numerical_features], training=False)}

    model: onnx.ModelProto
    model, _ = tf2onnx.convert.from_function(serve, input_signature=specs, opset=OPSET)
    _name_batch_dimension(model)
    _name_nodes(model, [layer.name for layer in dense.layers])
    return model


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in float16: `vectors` are float16 too, the other inputs and outputs not.

    Raises AccuracyError where a weight does not fit, naming the layer that uses it.
    """
    from onnxconverter_common import float16

    _check_weights(model)
    with warnings.catch_warnings():
        # Weights below the least half are raised to it, each with a warning of its own.
        warnings.simplefilter("ignore", UserWarning)
        half: onnx.ModelProto = float16.convert_float_to_float16(
            model,
            min_positive_val=_LEAST_HALF,
            max_finite_val=float(np.finfo(np.float16).max),
            keep_io_types=True,
        )
    _drop_casts(half, VECTORS)
    return half


def with_every_value(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with what each node computes as an output, in the nodes' order.

    Then each of them is rounded to the model's precision, on providers too that would compute
    several nodes in float32 before they round.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name)
        for node in exposed.graph.node
        for name in node.output
    )
    return exposed


def producer(model: onnx.ModelProto, value: str) -> str:
    """Return the name of the node that computes `value`."""
    return str(next(node.name for node in model.graph.node if value in node.output))


def _name_batch_dimension(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _name_nodes(model: onnx.ModelProto, layers: list[str]) -> None:
    # TensorFlow's names are paths, `dlrm_dense_1/top_1_1/MatMul`; scopes get a number each.
    longest_first = sorted(layers, key=len, reverse=True)
    layer = re.compile(rf"(?:^|/)({'|'.join(map(re.escape, longest_first))})(?:_\d+)?/")
    for node in model.graph.node:
        found = layer.search(node.name)
        if found:
            node.name = f"{found[1]}/{node.name[found.end() :]}"


def _check_weights(model: onnx.ModelProto) -> None:
    limit = float(np.finfo(np.float16).max)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or not values.size or np.abs(values).max() <= limit:
            continue
        users = [node.name for node in model.graph.node if weight.name in node.input]
        raise AccuracyError(
            f"float16 cannot hold a weight of {', '.join(users)}: "
            f"{np.abs(values).max():.4g} is beyond {limit:.0f}",
            hint="leave hps_onnx_fp16 out (--variants), or scale the layer's weights",
        )


def _drop_casts(model: onnx.ModelProto, name: str) -> None:
    """Let the graph's input `name` be float16, where it was cast to that."""
    graph = model.graph
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] == name]
    renamed = {cast.output[0]: name for cast in casts}
    for node in graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
    for cast in casts:
        graph.node.remove(cast)
    (graph_input,) = [value for value in graph.input if value.name == name]
    graph_input.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
