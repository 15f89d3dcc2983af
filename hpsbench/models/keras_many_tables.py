"""The many-table model as Keras 3 layers, from the same weights as the NumPy reference."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from hpsbench.models.dlrm import Layer
from hpsbench.models.keras_dlrm import fully_connected
from hpsbench.models.many_tables import input_names


def dense_model(layer: Layer) -> keras.Model:
    """Return the model of all vectors of a sample, float32[batch, n], to float32[batch, 1]."""
    vectors = keras.Input((len(layer.kernel),), dtype="float32", name="vectors")
    dense = fully_connected(layer, None, "fc")
    return keras.Model(vectors, dense(vectors), name="many_tables_dense")


def many_tables_model(
    lookups: Sequence[keras.layers.Layer], dense: keras.Model, hotness: int
) -> keras.Model:
    """Return the model of int32[batch, hotness] per lookup, to float32[batch, 1]."""
    ids = [keras.Input((hotness,), dtype="int32", name=n) for n in input_names(len(lookups))]
    vectors = [
        keras.layers.Flatten()(lookup(keys)) for lookup, keys in zip(lookups, ids, strict=True)
    ]
    side_by_side = keras.layers.Concatenate(name="vectors")(vectors)
    return keras.Model(ids, dense(side_by_side), name="many_tables")
