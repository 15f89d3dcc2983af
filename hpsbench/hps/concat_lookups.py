"""Lookups whose rows a model puts side by side: one operation that writes them there.

It takes the place of a whole concatenation along the axis behind that of the samples, and copies
what is no lookup's answer beside the rows. Where some value is of unknown width, or lookups are of
several kinds, it takes that of two or more lookups' answers beside each other, if those are flat.
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


def given_tensors(
    concatenation: Concatenation, first: int, values: Sequence[FlatLookup | Given]
) -> list[str]:
    """Return the names, as they are now, of the tensors that stand for the Given among `values`."""
    tensors = concatenation.node.input[first : first + len(values)]
    return [t for t, value in zip(tensors, values, strict=True) if isinstance(value, Given)]


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

    `fused` is the NodeDef of a HpsConcatLookup of these lookups and tensors, and lacks the
    attributes of its columns only.
    """
    _describe_columns(fused, values)
    concat = concatenation.node
    flats = [value for value in values if isinstance(value, FlatLookup)]
    removed = [node.name for flat in flats for node in (flat.lookup, *flat.between)]
    answer = f"{fused.name}:embeddings:0"
    tensors: dict[str, str] = {}
    if len(values) < len(concatenation.values):
        inputs = list(concat.input)
        inputs[first : first + len(values)] = [answer]
        concat.attr["N"].i -= len(values) - 1
        del concat.input[:]
        concat.input.extend(inputs)
    elif len(concatenation.shape) == 1:
        removed.append(concat.name)
        tensors[f"{concat.name}:output:0"] = answer
    else:
        _become_reshape(function, concat, answer, (-1, *concatenation.shape))
    remove_nodes(function, set(removed))
    function.node_def.append(fused)
    rename_tensors(function, tensors, {name: [fused.name] for name in removed})


def _describe_columns(fused: Any, values: Sequence[FlatLookup | Given]) -> None:
    fused.attr.pop("Trows", None)  # it writes float32 only
    # Inputs are the ids first, then what is given.
    by_input = sorted(range(len(values)), key=lambda i: isinstance(values[i], Given))
    fused.attr["widths"].list.i.extend(values[i].width for i in by_input)
    num_given = sum(isinstance(value, Given) for value in values)
    if num_given:
        fused.attr["num_given"].i = num_given
        fused.attr["order"].list.i.extend(by_input.index(i) for i in range(len(values)))


def _become_reshape(function: Any, node: Any, tensor: str, shape: Sequence[int]) -> None:
    """Make a node the reshape of a float32 `tensor`; its output keeps its name."""
    constant = function.node_def.add(
        name=unused_name(function, f"{node.name}/shape"), op="Const", device=node.device
    )
    constant.attr["dtype"].type = tf.int32.as_datatype_enum
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(shape, tf.int32))
    node.op = "Reshape"
    del node.input[:]
    node.input.extend([tensor, f"{constant.name}:output:0"])
    for name in ("N", "Tidx"):
        node.attr.pop(name, None)
    node.attr["T"].type = tf.float32.as_datatype_enum
    node.attr["Tshape"].type = tf.int32.as_datatype_enum
