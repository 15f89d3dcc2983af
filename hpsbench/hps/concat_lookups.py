"""Lookups whose rows a model puts side by side: one operation that writes them there.

It takes the place of a whole concatenation along the axis behind that of the samples. Columns of
what is no lookup's answer it leaves to updates behind it, which TensorFlow makes in its memory: so
the lookup need not wait for what is beside its rows. Where some value is of unknown width, or
lookups are of several kinds, it takes the place of two or more lookups' answers beside each other,
if those are flat.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from hpsbench.hps.concatenated_values import Concatenation, FlatLookup, Given, Value
from hpsbench.hps.function_calls import producer, remove_nodes, rename_tensors, unused_name

CONCAT_LOOKUP = "HpsConcatLookup"


def parts(
    concatenation: Concatenation, kinds: Mapping[str, Any]
) -> Iterator[tuple[int, list[FlatLookup | Given]]]:
    """Yield what one operation each can write: the number of its first value, and its values.

    `kinds` says of each lookup, by name, with which others it can be one operation.
    """

    def kind(value: Value) -> Any:
        return kinds[value.lookup.name] if isinstance(value, FlatLookup) else None

    values = [value for value in concatenation.values if value is not None]
    kinds_here = {kind(value) for value in values if isinstance(value, FlatLookup)}
    if len(values) == len(concatenation.values) > 1 and len(kinds_here) == 1:
        yield 0, values
        return
    numbered = enumerate(concatenation.values)
    for its_kind, run in itertools.groupby(numbered, lambda pair: kind(pair[1])):
        some = [(number, value) for number, value in run if value is not None]
        if its_kind is not None and len(some) > 1 and len(some[0][1].shape) == 1:
            yield some[0][0], [value for _, value in some]


def needs(function: Any, tensors: Sequence[str], names: set[str]) -> bool:
    """Return whether some tensor, or wait, comes from nodes of these names or waits for them."""
    inputs = {node.name: node.input for node in function.node_def}
    open_names, seen = [producer(tensor) for tensor in tensors], set[str]()
    while open_names:
        name = open_names.pop()
        if name not in seen:
            seen.add(name)
            open_names.extend(producer(tensor) for tensor in inputs.get(name, ()))
    return not seen.isdisjoint(names)


def concatenate(
    function: Any,
    concatenation: Concatenation,
    first: int,
    values: Sequence[FlatLookup | Given],
    fused: Any,
) -> None:
    """Let `fused` take the place of `values`, which are those from number `first` on.

    `fused` is the NodeDef of a HpsConcatLookup of these lookups, and lacks the attributes of its
    columns and its shape only.
    """
    _describe_columns(fused, values)
    concat = concatenation.node
    flats = [value for value in values if isinstance(value, FlatLookup)]
    # Nodes that go, and what is to be waited for in their place.
    waits = {node.name: [fused.name] for f in flats for node in (f.lookup, *f.between)}
    answer = f"{fused.name}:embeddings:0"
    tensors: dict[str, str] = {}
    if len(values) < len(concatenation.values):
        inputs = list(concat.input)
        inputs[first : first + len(values)] = [answer]
        concat.attr["N"].i -= len(values) - 1
        del concat.input[:]
        concat.input.extend(inputs)
    else:
        if len(concatenation.shape) > 1:
            fused.attr["sample_shape"].list.i.extend(concatenation.shape)
        for tensor, given, begin in _given(concatenation):
            if given.reshape is not None:
                tensor = given.reshape.input[0]
                waits[given.reshape.name] = [producer(tensor)]
            answer = _update(function, concat, answer, tensor, given, begin)
        tensors[f"{concat.name}:output:0"] = answer
        waits[concat.name] = [producer(answer)]
    remove_nodes(function, set(waits))
    function.node_def.append(fused)
    rename_tensors(function, tensors, waits)


def _describe_columns(fused: Any, values: Sequence[FlatLookup | Given]) -> None:
    fused.attr.pop("Trows", None)  # it writes float32 only
    width, first_columns = 0, []
    for value in values:
        if isinstance(value, FlatLookup):
            first_columns.append(width)
            fused.attr["widths"].list.i.append(value.width)
        width += value.width
    if len(first_columns) < len(values):
        fused.attr["first_columns"].list.i.extend(first_columns)
        fused.attr["width"].i = width


def _given(concatenation: Concatenation) -> list[tuple[str, Given, int]]:
    """Return the tensors that are no lookup's answer, with where along axis 1 each begins."""
    found, begin = [], 0
    for tensor, value in zip(concatenation.node.input, concatenation.values, strict=False):
        assert value is not None
        if isinstance(value, Given):
            found.append((tensor, value, begin))
        begin += value.shape[0]
    return found


def _update(function: Any, concat: Any, tensor: str, values: str, given: Given, begin: int) -> str:
    """Add the update of a float32 `tensor`, from `begin` along axis 1 on, and return its result.

    `values` are those of `given`, before its reshape if it has one. TensorFlow makes the update in
    the tensor's own memory, if nothing else uses that.
    """
    columns = (begin, begin + given.shape[0])
    bounds = [_constant(function, concat, "columns", (0, column)) for column in columns]
    steps = _constant(function, concat, "steps", (1, 1))
    node = _node(function, concat, "TensorStridedSliceUpdate", [tensor, *bounds, steps, values])
    node.attr["T"].type = tf.float32.as_datatype_enum
    node.attr["Index"].type = tf.int32.as_datatype_enum
    # All samples, and all of what is behind axis 1.
    node.attr["begin_mask"].i = 0b01
    node.attr["end_mask"].i = 0b01
    if given.reshape is not None:
        node.attr["shrink_axis_mask"].i = 0b10
    return f"{node.name}:output:0"


def _constant(function: Any, concat: Any, name: str, values: Sequence[int]) -> str:
    node = _node(function, concat, "Const", [], name)
    node.attr["dtype"].type = tf.int32.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values, tf.int32))
    return f"{node.name}:output:0"


def _node(function: Any, concat: Any, op: str, inputs: Sequence[str], name: str = "") -> Any:
    name = unused_name(function, f"{concat.name}/{name or op}")
    node = function.node_def.add(name=name, op=op, device=concat.device)
    node.input.extend(inputs)
    return node
