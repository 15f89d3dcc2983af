"""Fusion at export: N lookups of a model become one operation that asks N tables at once.

    fused = hps.fuse(model)              # a Keras model, functional or subclassed
    fused.export("model.savedmodel")     # the signatures that model.export would give

    hps.export_fused("model.savedmodel", "fused.savedmodel")  # without the code of the model

The rewrite is of the exported graph, so it is the same for every kind of model, and the exported
model needs neither Keras nor the code that made it. It changes how tables are asked, not what they
answer: answers are equal bit for bit, the JSON file stays as it is, and its
`fuse_embedding_table`, which is about how tables are stored, may be true or false. A lookup whose
ids need the answer of another lookup stays behind it; other models of the JSON file, and keys of
another type, are fused among themselves.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from hpsbench.errors import HpsError
from hpsbench.hps.concatenated_values import LOOKUP
from hpsbench.hps.function_calls import functions_that_reach, rename_functions
from hpsbench.hps.fused_lookups import fuse_library
from hpsbench.hps.op import operations

_GRAPH_FILE = "saved_model.pb"
#: Of the graph as it was; TensorFlow only logs it, and does without.
_FINGERPRINT_FILE = "fingerprint.pb"


def fuse(model: Any) -> FusedModel:
    """Return `model` with its lookups fused: to be called, or exported as a SavedModel.

    `model` is a Keras model (functional, subclassed, nested) or any callable on tensors; it stays
    as it is, and shares its weights. Raises HpsError where a call or an export finds fewer than two
    lookups that can be fused, and none that is only concatenated with other tensors: there is
    nothing to be gained then.
    """
    return FusedModel(model)


class FusedModel(tf.Module):  # type: ignore[misc]
    """A model whose lookups are one operation per model of the parameter server; see `fuse`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        operations()
        self.model = model
        self._call = tf.function(self._fused_call, autograph=False)
        # Functions that the fused graph calls live as long as the graph that they come from.
        self._traced: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, bit for bit."""
        return self._call(*args, **kwargs)

    def export(self, path: str | Path, **keywords: Any) -> None:
        """Write the SavedModel that the model's own `export` (Keras 2: `save`) writes, fused.

        Signatures keep their names, and inputs and outputs theirs, with their types and shapes.
        `keywords` go to that `export`: give it `input_signature` for a subclassed model, or Keras 3
        takes ids for floats. Replaces a SavedModel at `path`.
        """
        # Beside its place, so that it moves there at once.
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            _export(self.model, str(Path(folder) / "exported"), **keywords)
            export_fused(Path(folder) / "exported", path)

    def _fused_call(self, *args: Any, **kwargs: Any) -> Any:
        traced = tf.function(lambda *a, **k: self.model(*a, **k)).get_concrete_function(
            *args, **kwargs
        )
        self._traced.append(traced)
        with tf.init_scope():
            fused = _fused_function(traced)
        # Python values, such as `training=False`, are part of the traced graph.
        values = tf.nest.flatten((args, kwargs), expand_composites=True)
        given = [value for value in values if tf.is_tensor(value)]
        outputs = fused(*given, *traced.captured_inputs)
        return tf.nest.pack_sequence_as(traced.structured_outputs, outputs, expand_composites=True)


def export_fused(saved_model: str | Path, path: str | Path) -> None:
    """Write the SavedModel `saved_model` to the folder `path` with its lookups fused.

    Everything else is copied as it is: signatures, variables, assets, what Keras wrote. The two
    folders may be the same. Raises HpsError where `saved_model` is no SavedModel, or has no two
    lookups that can be fused, and none that is only concatenated with other tensors.
    """
    source, path = Path(saved_model), Path(path)
    graph = _read(source)
    fused = sum(fuse_library(m.graph_def.library) for m in graph.meta_graphs)
    _require_fused(fused, f"SavedModel {source}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        unfinished = Path(folder) / "fused"
        shutil.copytree(source, unfinished)
        (unfinished / _FINGERPRINT_FILE).unlink(missing_ok=True)
        (unfinished / _GRAPH_FILE).write_bytes(graph.SerializeToString(deterministic=True))
        if path.exists():
            path.rename(Path(folder) / "replaced")
        unfinished.rename(path)


def _fused_function(traced: Any) -> Callable[..., list[Any]]:
    """Return a function that takes the inputs of a ConcreteFunction, and then what it captures."""
    definition = traced.graph.as_graph_def(add_shapes=True)
    shapes = {
        node.name: node.attr["_output_shapes"]
        for node in definition.node
        if "_output_shapes" in node.attr
    }
    library = definition.library
    function = library.function.add()
    function.CopyFrom(traced.function_def)
    for node in function.node_def:
        if node.name in shapes:
            node.attr["_output_shapes"].CopyFrom(shapes[node.name])
    del definition.node[:]
    # TensorFlow knows the functions as they were by their names.
    rewritten = functions_that_reach(library, LOOKUP)
    rename_functions(library, {name: f"{name}_fused" for name in rewritten})
    _require_fused(fuse_library(library), "the model")
    signature = function.signature
    call = definition.node.add(name="fused", op="StatefulPartitionedCall")
    call.attr["f"].func.name = signature.name
    for argument in signature.input_arg:
        node = definition.node.add(name=f"input/{argument.name}", op="Placeholder")
        node.attr["dtype"].type = argument.type
        call.input.append(node.name)
    call.attr["Tin"].list.type.extend(a.type for a in signature.input_arg)
    call.attr["Tout"].list.type.extend(a.type for a in signature.output_arg)
    wrapped = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(definition, name=""), []
    )
    return wrapped.prune(  # type: ignore[no-any-return]
        [wrapped.graph.get_tensor_by_name(f"{name}:0") for name in call.input],
        [wrapped.graph.get_tensor_by_name(f"fused:{i}") for i in range(len(signature.output_arg))],
    )


def _read(folder: Path) -> Any:
    graph = saved_model_pb2.SavedModel()
    try:
        graph.ParseFromString((folder / _GRAPH_FILE).read_bytes())
    except OSError as error:
        raise HpsError(
            f"SavedModel {folder}: {_GRAPH_FILE}: {error.strerror}",
            hint="give the folder that tf.saved_model.save or Keras wrote",
        ) from error
    return graph


def _require_fused(count: int, what: str) -> None:
    if count == 0:
        raise HpsError(
            f"{what} has no two lookups that can be fused",
            hint=f"it needs two {LOOKUP} of one model and key type, neither of which needs the "
            "other's answer, or one whose answer is only concatenated; serve it as it is",
        )


def _export(model: Any, path: str, **keywords: Any) -> None:
    is_keras_3 = hasattr(tf.keras, "version")
    export = getattr(model, "export" if is_keras_3 else "save", None)
    if export is None:
        raise HpsError(
            f"a {type(model).__name__} cannot be exported by itself",
            hint="save it with tf.saved_model.save, and call export_fused on that folder",
        )
    export(path, **({"verbose": False, **keywords} if is_keras_3 else keywords))
