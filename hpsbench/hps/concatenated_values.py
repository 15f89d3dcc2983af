"""What a graph concatenates per sample: lookups' answers, and float32 tensors of known width.

A lookup's answer counts where it is reshaped to [-1, width] (as `tf.reshape`, or Keras' Flatten and
Reshape, write it) for a concatenation along the last axis, or where it is [samples, dim] or
[samples, keys, dim] itself, for one along axis 1. Rows of float16 do not count: they are fused like
others, and concatenated after.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from hpsbench.hps.function_calls import producer

LOOKUP = "HpsLookup"


@dataclass(frozen=True, kw_only=True)
class FlatLookup:
    """A lookup whose answer serves one concatenation, with the nodes that only reshape it for that.

    `shape` is that of one sample's values there: (width,) or (keys, dim).
    """

    lookup: Any
    shape: tuple[int, ...]
    between: tuple[Any, ...] = ()

    @property
    def width(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Given:
    """A float32 tensor that is no such lookup's answer, and the `shape` of one sample's values.

    `reshape` is the node that makes it, where that only puts an axis of length 1 behind that of the
    samples, for this concatenation.
    """

    shape: tuple[int, ...]
    reshape: Any | None = None

    @property
    def width(self) -> int:
        return math.prod(self.shape)


Value = FlatLookup | Given | None


@dataclass(frozen=True, kw_only=True)
class Concatenation:
    """A ConcatV2 node, and what its values are: None where that is not known, or does not fit."""

    node: Any
    values: list[Value]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of one sample's values in the result, where no value is None."""
        shapes = [value.shape for value in self.values if value is not None]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(kw_only=True)
class _Graph:
    """The nodes of a function, who takes what from them, and the shapes of its arguments."""

    nodes: Mapping[str, Any]
    #: By tensor, the names of the nodes that take it; results of the function take as "".
    takers: dict[str, list[str]] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    def only_taker(self, tensor: str, name: str) -> bool:
        return self.takers.get(tensor) == [name]

    def source(self, tensor: str, op: str) -> Any | None:
        """Return the node `op` that gives `tensor` as its first output, None for any other."""
        node = self.nodes.get(producer(tensor))
        return node if node is not None and node.op == op and tensor.endswith(":0") else None

    def constant(self, tensor: str) -> Any | None:
        """Return the value of a constant that waits for nothing, None for any other tensor."""
        node = self.source(tensor, "Const")
        if node is None or _waits(node):
            return None
        return tf.make_ndarray(node.attr["value"].tensor).tolist()

    def sample_shape(self, tensor: str) -> tuple[int, ...] | None:
        """Return the shape of `tensor` without its first axis, None where it is not fully known."""
        node = self.nodes.get(producer(tensor))
        attributes = self.arguments.get(tensor) if node is None else node.attr
        if attributes is None or "_output_shapes" not in attributes:
            return None
        shapes = attributes["_output_shapes"].list.shape
        if len(shapes) != 1 or shapes[0].unknown_rank:
            return None
        sizes = tuple(axis.size for axis in shapes[0].dim[1:])
        return sizes if sizes and min(sizes) > 0 else None


def find_concatenations(function: Any) -> Iterator[Concatenation]:
    """Yield each concatenation of float32 along the axis behind that of the samples.

    `function` is a FunctionDef.
    """
    graph = _graph(function)
    for node in function.node_def:
        if node.op != "ConcatV2" or node.attr["T"].type != tf.float32.as_datatype_enum:
            continue
        count = node.attr["N"].i
        axis = graph.constant(node.input[count])
        # What a concatenation waits for, none of its values need wait for.
        if axis not in (1, -1, -2) or _waits(node):
            continue
        values = [_value(graph, node, tensor) for tensor in node.input[:count]]
        rest = next((v.shape[1:] for v in values if isinstance(v, FlatLookup)), None)
        if rest is not None and axis in (1, -1 - len(rest)):
            yield Concatenation(
                node=node,
                values=[v if v is not None and v.shape[1:] == rest else None for v in values],
            )


def _graph(function: Any) -> _Graph:
    graph = _Graph(nodes={node.name: node for node in function.node_def})
    for number, argument in enumerate(function.signature.input_arg):
        graph.arguments[argument.name] = function.arg_attr[number].attr
    for node in function.node_def:
        for tensor in node.input:
            graph.takers.setdefault(tensor, []).append(node.name)
    for tensor in function.ret.values():
        graph.takers.setdefault(tensor, []).append("")
    return graph


def _value(graph: _Graph, concat: Any, tensor: str) -> Value:
    if flat := _reshaped_lookup(graph, concat, tensor):
        return flat
    shape = graph.sample_shape(tensor)
    if shape is None or len(shape) > 2:
        return None
    lookup = graph.source(tensor, LOOKUP)
    if lookup is not None and graph.only_taker(tensor, concat.name):
        return FlatLookup(lookup=lookup, shape=shape)
    return Given(shape=shape, reshape=_row_reshape(graph, concat, tensor, shape))


def _row_reshape(graph: _Graph, concat: Any, row: str, shape: tuple[int, ...]) -> Any | None:
    """Return the reshape of [samples, dim] to [samples, 1, dim] that makes `row`, if it does."""
    reshape = graph.source(row, "Reshape")
    if reshape is None or set(graph.takers[row]) != {concat.name} or _waits(reshape):
        return None
    inner = graph.sample_shape(reshape.input[0])
    if inner is None or shape != (1, *inner):
        return None
    return reshape if graph.constant(reshape.input[1]) == [-1, *shape] else None


def _reshaped_lookup(graph: _Graph, concat: Any, value: str) -> FlatLookup | None:
    reshape = graph.source(value, "Reshape")
    if reshape is None or not graph.only_taker(value, concat.name):
        return None
    lookup = graph.source(reshape.input[0], LOOKUP)
    if lookup is None or _waits(reshape):
        return None
    rows, shape = reshape.input[0], reshape.input[1]
    constant = graph.constant(shape)
    between: tuple[Any, ...] = ()
    if constant is None:
        found = _batch_and_width(graph, reshape, rows)
        if found is None:
            return None
        constant, between = found
    if len(constant) != 2 or constant[0] != -1:
        return None
    takers = {reshape.name, *(node.name for node in between if node.op == "Shape")}
    width = constant[1]
    if set(graph.takers[rows]) != takers or width < 1 or width % lookup.attr["emb_vec_size"].i:
        return None
    return FlatLookup(lookup=lookup, shape=(width,), between=(reshape, *between))


def _batch_and_width(
    graph: _Graph, reshape: Any, rows: str
) -> tuple[list[int], tuple[Any, ...]] | None:
    """Return [-1, width], and its nodes, of a shape that Keras writes: (shape(rows)[0], width)."""
    pack = graph.source(reshape.input[1], "Pack")
    if pack is None or len(pack.input) != 2 or not graph.only_taker(reshape.input[1], reshape.name):
        return None
    batch, width = graph.source(pack.input[0], "StridedSlice"), graph.constant(pack.input[1])
    if batch is None or width is None or not graph.only_taker(pack.input[0], pack.name):
        return None
    shape = graph.source(batch.input[0], "Shape")
    if shape is None or shape.input[0] != rows or not graph.only_taker(batch.input[0], batch.name):
        return None
    first = [graph.constant(tensor) for tensor in batch.input[1:4]]
    if first != [[0], [1], [1]] or batch.attr["shrink_axis_mask"].i != 1:
        return None
    if any(_waits(node) for node in (pack, batch, shape)):
        return None
    return [-1, width], (pack, batch, shape)


def _waits(node: Any) -> bool:
    return any(tensor.startswith("^") for tensor in node.input)
