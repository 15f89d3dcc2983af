"""Keras models as TensorFlow SavedModels whose signature names every input and output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

OUTPUT = "output_1"


def export_savedmodel(
    model: keras.Model,
    path: Path,
    *,
    specs: Sequence[tf.TensorSpec] | None = None,
    adapt: Callable[..., Sequence[tf.Tensor]] | None = None,
    keep_devices: bool = False,
) -> None:
    """Write `model` to the folder `path`, its one output named `output_1`.

    The signature's inputs are the model's own, or `specs`, which `adapt` turns into the model's.
    With `keep_devices`, each variable is loaded on the device that it is on now; without, on the
    one that computes.
    """
    if specs is None:
        specs = [tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in model.inputs]

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def serve(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: model(list(adapt(*inputs) if adapt else inputs), training=False)}

    # Not keras' own export: it lists every variable twice, and a 16 GB table is then written twice.
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    policy = tf.saved_model.experimental.VariablePolicy
    options = tf.saved_model.SaveOptions(
        experimental_variable_policy=policy.SAVE_VARIABLE_DEVICES if keep_devices else policy.NONE
    )
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve}, options=options)
