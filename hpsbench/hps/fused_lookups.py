"""The rewrite behind `fuse`: lookups of one function become one operation for several tables."""

from __future__ import annotations

import graphlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from hpsbench.hps.concat_lookups import CONCAT_LOOKUP, concatenate, needs, parts
from hpsbench.hps.concatenated_values import LOOKUP, FlatLookup, find_concatenations
from hpsbench.hps.function_calls import (
    functions_that_reach,
    inline_calls,
    producer,
    remove_nodes,
    rename_tensors,
    unused_name,
)

MULTI_LOOKUP = "HpsMultiLookup"
_NAMES = {MULTI_LOOKUP: "hps_multi_lookup", CONCAT_LOOKUP: "hps_concat_lookup"}
#: What tells lookups of one operation apart; all other attributes must be equal.
_OWN_ATTRIBUTES = ("table_id", "emb_vec_size", "global_batch_size")


def fuse_library(library: Any) -> int:
    """Fuse the lookups in every function of a FunctionDefLibrary; return how many were fused.

    Those of one function are fused where they ask one model with keys of one type and none needs
    the answer of another; calls of functions with lookups are inlined first. Where their rows are
    only concatenated, the operation writes them so. Functions keep their names, arguments and
    results.
    """
    functions = functions_that_reach(library, LOOKUP)
    for function in functions.values():
        inline_calls(function, functions)
    return sum(fuse_function(function) for function in functions.values())


def fuse_function(function: Any) -> int:
    """Fuse the lookups of one FunctionDef, and return how many were fused."""
    before = len(_groups(function))
    _concatenate(function)
    groups = defaultdict(list)
    for node, group in _groups(function):
        groups[group].append(node)
    for lookups in groups.values():
        if len(lookups) > 1:
            _fuse(function, lookups)
    return before - len(_groups(function))


def _concatenate(function: Any) -> None:
    """Fuse the lookups that are concatenated, with the concatenation."""
    groups = {node.name: group for node, group in _groups(function)}
    for concatenation in list(find_concatenations(function)):
        # From the last part to the first, so that the numbers of the others stay.
        for first, values in reversed(list(parts(concatenation, groups))):
            lookups = [value.lookup for value in values if isinstance(value, FlatLookup)]
            fused = _operation(function, CONCAT_LOOKUP, lookups)
            if not needs(function, fused.input, {lookup.name for lookup in lookups}):
                concatenate(function, concatenation, first, values, fused)


def _groups(function: Any) -> list[tuple[Any, Any]]:
    """Return the lookups of a function, each with what those that can be one operation share."""
    depths = _depths(function)
    return [
        (node, (_kind(node), depths[node.name])) for node in function.node_def if node.op == LOOKUP
    ]


def _depths(function: Any) -> dict[str, int]:
    """Return, per node, how many lookups are on the longest way from the arguments to it.

    Lookups of one depth need nothing of each other, directly or by way of others.
    """
    nodes = {node.name: node for node in function.node_def}
    needs = {name: {producer(tensor) for tensor in node.input} for name, node in nodes.items()}
    depths: dict[str, int] = defaultdict(int)
    for name in graphlib.TopologicalSorter(needs).static_order():
        depths[name] = max(
            (depths[n] + (n in nodes and nodes[n].op == LOOKUP) for n in needs.get(name, ())),
            default=0,
        )
    return depths


def _kind(lookup: Any) -> tuple[str, ...]:
    """Return what two lookups must share to be one operation."""
    shared = sorted(
        (name, value.SerializeToString())
        for name, value in lookup.attr.items()
        if name not in _OWN_ATTRIBUTES and not name.startswith("_")
    )
    return (lookup.device, repr(shared))


def _operation(function: Any, op: str, lookups: Sequence[Any]) -> Any:
    """Return the NodeDef of an operation for several lookups, with their ids and attributes."""
    name = unused_name(function, _NAMES[op])
    fused = type(lookups[0])(op=op, name=name, device=lookups[0].device)
    for name, value in lookups[0].attr.items():
        if name not in _OWN_ATTRIBUTES and not name.startswith("_"):
            fused.attr[name].CopyFrom(value)
    fused.attr["num_tables"].i = len(lookups)
    fused.attr["table_ids"].list.i.extend(n.attr["table_id"].i for n in lookups)
    fused.attr["emb_vec_sizes"].list.i.extend(n.attr["emb_vec_size"].i for n in lookups)
    fused.attr["global_batch_size"].i = max(n.attr["global_batch_size"].i for n in lookups)
    fused.input.extend(node.input[0] for node in lookups)
    fused.input.extend(dict.fromkeys(wait for node in lookups for wait in node.input[1:]))
    return fused


def _fuse(function: Any, lookups: Sequence[Any]) -> None:
    fused = _operation(function, MULTI_LOOKUP, lookups)
    replaced = [node.name for node in lookups]
    remove_nodes(function, set(replaced))
    function.node_def.append(fused)
    rename_tensors(
        function,
        {f"{name}:embeddings:0": f"{fused.name}:embeddings:{i}" for i, name in enumerate(replaced)},
        {name: [fused.name] for name in replaced},
    )
