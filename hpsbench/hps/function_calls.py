"""Functions of a TensorFlow graph, as FunctionDefs: who calls whom, inlining, renaming.

A rewrite that looks at one function at a time, as that of `fused_lookups`, sees through calls once
they are inlined: Keras 2 saves every layer as a function of its own, and `tf.function` in a model
makes one too.

A node takes a tensor by the name of an argument (`ids`), or of another node and its output
(`lookup:embeddings:0`); `^lookup` only waits for that node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def functions_that_reach(library: Any, op: str) -> dict[str, Any]:
    """Return the functions that hold a node `op` or call one that does, callees first.

    `library` is a FunctionDefLibrary; the values are its FunctionDefs, by name.
    """
    functions = {function.signature.name: function for function in library.function}
    reaching: dict[str, Any] = {}
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in functions:
            return
        seen.add(name)
        callees = list(_callees(functions[name]))
        for callee in callees:
            visit(callee)
        if any(callee in reaching for callee in callees) or any(
            node.op == op for node in functions[name].node_def
        ):
            reaching[name] = functions[name]

    for name in functions:
        visit(name)
    return reaching


def inline_calls(function: Any, callees: Mapping[str, Any]) -> None:
    """Replace each call of one of `callees`, FunctionDefs by name, by the nodes of its body.

    Calls within the callees stay, so inline into those first.
    """
    calls = [n for n in function.node_def if n.op in _CALLS and n.attr["f"].func.name in callees]
    tensors: dict[str, str] = {}
    waits: dict[str, list[str]] = {}
    bodies = [
        node
        for call in calls
        for node in _body(call, callees[call.attr["f"].func.name], tensors, waits)
    ]
    remove_nodes(function, {call.name for call in calls})
    function.node_def.extend(bodies)
    rename_tensors(function, tensors, waits)


def remove_nodes(function: Any, names: set[str]) -> None:
    """Remove the nodes of these names from a FunctionDef."""
    for number in reversed(range(len(function.node_def))):
        if function.node_def[number].name in names:
            del function.node_def[number]


def rename_tensors(
    function: Any, tensors: Mapping[str, str], waits: Mapping[str, list[str]]
) -> None:
    """Let all who take a tensor of `tensors` take another, and all who wait for a node wait anew.

    `tensors` may lead from one to the next. The keys of `waits` are nodes that were removed, its
    values those to wait for instead.
    """

    def renamed(tensor: str) -> str:
        while tensor in tensors:
            tensor = tensors[tensor]
        return tensor

    for node in function.node_def:
        data = [renamed(tensor) for tensor in node.input if not tensor.startswith("^")]
        controls = [tensor[1:] for tensor in node.input if tensor.startswith("^")]
        controls = [new for old in controls for new in _waited(old, waits)]
        del node.input[:]
        node.input.extend([*data, *(f"^{name}" for name in dict.fromkeys(controls))])
    for key, tensor in list(function.ret.items()):
        function.ret[key] = renamed(tensor)
    for key, old in list(function.control_ret.items()):
        if old in waits:
            new = dict.fromkeys(_waited(old, waits))
            outputs = {f"{key}_{number}": name for number, name in enumerate(new)}
            del function.control_ret[key]
            function.signature.control_output.remove(key)
            function.control_ret.update(outputs)
            function.signature.control_output.extend(outputs)


def unused_name(function: Any, wanted: str) -> str:
    """Return the name `wanted`, with a number behind where a node of the FunctionDef has it."""
    names = {node.name for node in function.node_def}
    name, number = wanted, 0
    while name in names:
        number += 1
        name = f"{wanted}_{number}"
    return name


def rename_functions(library: Any, names: Mapping[str, str]) -> None:
    """Give functions of a FunctionDefLibrary other names, there and in all that refer to them."""
    for function in library.function:
        function.signature.name = names.get(function.signature.name, function.signature.name)
        for node in function.node_def:
            for value in node.attr.values():
                called = [value.func] if value.WhichOneof("value") == "func" else value.list.func
                for func in called:
                    func.name = names.get(func.name, func.name)


def producer(tensor: str) -> str:
    """Return the node, or the argument, that a tensor or a wait comes from."""
    return tensor.removeprefix("^").partition(":")[0]


def _waited(name: str, waits: Mapping[str, list[str]]) -> Iterator[str]:
    if name not in waits:
        yield name
        return
    for other in waits[name]:
        yield from _waited(other, waits)


def _callees(function: Any) -> Iterator[str]:
    for node in function.node_def:
        for value in node.attr.values():
            if value.WhichOneof("value") == "func":
                yield value.func.name
            yield from (func.name for func in value.list.func)


def _body(
    call: Any, callee: Any, tensors: dict[str, str], waits: dict[str, list[str]]
) -> Iterator[Any]:
    """Yield the nodes of a call's body, and add what takes the place of the call's outputs."""
    given = [tensor for tensor in call.input if not tensor.startswith("^")]
    controls = [tensor for tensor in call.input if tensor.startswith("^")]
    arguments = dict(zip((a.name for a in callee.signature.input_arg), given, strict=True))

    def inner(tensor: str) -> str:
        wait = "^" if tensor.startswith("^") else ""
        name = producer(tensor)
        if name in arguments:
            return f"^{producer(arguments[name])}" if wait else arguments[name]
        return f"{wait}{call.name}/{tensor.removeprefix('^')}"

    for node in callee.node_def:
        copy = type(node).FromString(node.SerializeToString())
        copy.name = f"{call.name}/{node.name}"
        copy.device = node.device or call.device
        del copy.input[:]
        copy.input.extend([*map(inner, node.input), *controls])
        yield copy
    results = [inner(callee.ret[output.name]) for output in callee.signature.output_arg]
    tensors.update({f"{call.name}:output:{i}": tensor for i, tensor in enumerate(results)})
    effects = [f"{call.name}/{name}" for name in callee.control_ret.values()]
    waits[call.name] = [*effects, *(producer(tensor) for tensor in results)]
