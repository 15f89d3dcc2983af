"""Lookups whose rows a model only puts side by side: one operation that writes them there.

The pattern, per lookup: a reshape to [-1, width] (as `tf.reshape`, or Keras' Flatten and Reshape,
write it), then a concatenation of two or more along the last axis. Rows of float16 are not written
so: they are fused like others, and concatenated after.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from hpsbench.hps.function_calls import producer, remove_nodes, rename_tensors

LOOKUP, CONCAT_LOOKUP = "HpsLookup", "HpsConcatLookup"


@dataclass(frozen=True, kw_only=True)
class FlatLookup:
    """A lookup with the nodes that make [samples, width] of its answer, and serve nothing else."""

    lookup: Any
    width: int
    between: tuple[Any, ...]


@dataclass(kw_only=True)
class _Graph:
    """The nodes of a function, and who takes what from them."""

    nodes: Mapping[str, Any]
    #: By tensor, the names of the nodes that take it; results of the function take as "".
    takers: dict[str, list[str]] = field(default_factory=dict)

    def only_taker(self, tensor: str, name: str) -> bool:
        return self.takers.get(tensor) == [name]

    def source(self, tensor: str, op: str) -> Any | None:
        """Return the node `op` that gives `tensor` as its first output, None for any other."""
        node = self.nodes.get(producer(tensor))
        return node if node is not None and node.op == op and tensor.endswith(":0") else None

    def constant(self, tensor: str) -> Any | None:
        node = self.source(tensor, "Const")
        return None if node is None else tf.make_ndarray(node.attr["value"].tensor).tolist()


def find_concatenations(function: Any) -> Iterator[tuple[Any, list[FlatLookup | None]]]:
    """Yield each ConcatV2 along the last axis, with what its values are as flat lookups, or None.

    `function` is a FunctionDef.
    """
    graph = _Graph(nodes={node.name: node for node in function.node_def})
    for node in function.node_def:
        for tensor in node.input:
            graph.takers.setdefault(tensor, []).append(node.name)
    for tensor in function.ret.values():
        graph.takers.setdefault(tensor, []).append("")
    for node in function.node_def:
        if node.op == "ConcatV2":
            count = node.attr["N"].i
            if graph.constant(node.input[count]) in (1, -1):
                yield node, [_flat_lookup(graph, node, value) for value in node.input[:count]]


def concatenate(
    function: Any, concat: Any, first: int, flats: list[FlatLookup], fused: Any
) -> None:
    """Let `fused` take the place of the values of `concat` from number `first` on.

    `fused` is the NodeDef of a HpsConcatLookup that lacks its widths only.
    """
    fused.attr.pop("Trows", None)  # it writes float32 only
    fused.attr["widths"].list.i.extend(flat.width for flat in flats)
    removed = [node.name for flat in flats for node in (flat.lookup, *flat.between)]
    tensors: dict[str, str] = {}
    values = list(concat.input)
    values[first : first + len(flats)] = [f"{fused.name}:embeddings:0"]
    count = concat.attr["N"].i - len(flats) + 1
    if count == 1:
        removed.append(concat.name)
        tensors[f"{concat.name}:output:0"] = values[0]
    else:
        del concat.input[:]
        concat.input.extend(values)
        concat.attr["N"].i = count
    remove_nodes(function, set(removed))
    function.node_def.append(fused)
    rename_tensors(function, tensors, {name: [fused.name] for name in removed})


def runs(
    flats: list[FlatLookup | None], kinds: Mapping[str, Any]
) -> Iterator[tuple[int, list[Any]]]:
    """Yield the runs of two and more values that one operation can write, with their first number.

    `kinds` says of each lookup, by name, with which others it can be one operation.
    """
    numbered = enumerate(flats)
    for kind, run in itertools.groupby(
        numbered, lambda pair: kinds[pair[1].lookup.name] if pair[1] else None
    ):
        some = list(run)
        if kind is not None and len(some) > 1:
            yield some[0][0], [flat for _, flat in some]


def _flat_lookup(graph: _Graph, concat: Any, value: str) -> FlatLookup | None:
    reshape = graph.source(value, "Reshape")
    if reshape is None or not graph.only_taker(value, concat.name):
        return None
    lookup = graph.source(reshape.input[0], LOOKUP)
    if lookup is None or _waits(reshape) or not _is_float32(lookup):
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
    return FlatLookup(lookup=lookup, width=width, between=(reshape, *between))


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


def _is_float32(lookup: Any) -> bool:
    # A graph may leave out what is the default.
    return "Trows" not in lookup.attr or lookup.attr["Trows"].type == tf.float32.as_datatype_enum


def _waits(node: Any) -> bool:
    return any(tensor.startswith("^") for tensor in node.input)
