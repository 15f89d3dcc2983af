"""DLRM as Keras 3 layers, from the same weights as the NumPy reference."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from hpsbench.config import DlrmConfig
from hpsbench.models.dlrm import DlrmWeights, Layer

CATEGORICAL = "categorical_features"
NUMERICAL = "numerical_features"


class NativeEmbedding(keras.layers.Layer):  # type: ignore[misc]
    """TensorFlow's own lookup: the rows as one variable on the device that computes.

    `rows`: float32[num_embeddings, dim], for example memory-mapped; copied once, into the variable.
    """

    def __init__(self, rows: npt.NDArray[np.float32], **keywords: Any) -> None:
        super().__init__(**keywords)
        self._rows = rows

    def build(self, input_shape: Any) -> None:
        # In host memory here, where the model is only exported; it is loaded on the device that
        # computes. And as a tensor: an initialiser's array would hold the rows a second time.
        with tf.device("CPU:0"):
            self.table = self.add_weight(
                name="table",
                shape=self._rows.shape,
                initializer=lambda shape, dtype=None: tf.convert_to_tensor(self._rows),
                trainable=False,
            )

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.nn.embedding_lookup(self.table, ids)


class DotInteraction(keras.layers.Layer):  # type: ignore[misc]
    """Dot products of every pair among the dense vector and the embedding vectors."""

    def call(self, dense: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        stacked = tf.concat([dense[:, None, :], vectors], axis=1)
        products = tf.matmul(stacked, stacked, transpose_b=True)
        count = stacked.shape[1]
        rows, columns = np.tril_indices(count, k=-1)
        flat = tf.reshape(products, [-1, count * count])
        return tf.gather(flat, (rows * count + columns).astype(np.int32), axis=1)


def dense_model(dlrm: DlrmConfig, weights: DlrmWeights, embedding_dim: int) -> keras.Model:
    """Return the model (vectors [batch, slots, dim], numerical [batch, n]) -> float32[batch, 1]."""
    vectors = keras.Input((dlrm.num_slots, embedding_dim), dtype="float32", name="vectors")
    numerical = keras.Input((dlrm.num_numerical,), dtype="float32", name=NUMERICAL)
    dense = numerical
    for index, layer in enumerate(weights.bottom):
        dense = _dense(layer, "relu", f"bottom_{index}")(dense)
    hidden = keras.layers.Concatenate(name="dense_and_pairs")(
        [dense, DotInteraction(name="interaction")(dense, vectors)]
    )
    for index, layer in enumerate(weights.top):
        activation = "relu" if index < len(weights.top) - 1 else "sigmoid"
        hidden = _dense(layer, activation, f"top_{index}")(hidden)
    return keras.Model([vectors, numerical], hidden, name="dlrm_dense")


def _dense(layer: Layer, activation: str, name: str) -> keras.layers.Dense:
    return keras.layers.Dense(
        layer.kernel.shape[1],
        activation,
        kernel_initializer=lambda shape, dtype=None: tf.constant(layer.kernel),
        bias_initializer=lambda shape, dtype=None: tf.constant(layer.bias),
        name=name,
    )


def dlrm_model(lookup: keras.layers.Layer, dense: keras.Model, num_slots: int) -> keras.Model:
    """Return the model (categorical int32[batch, slots], numerical) -> float32[batch, 1]."""
    ids = keras.Input((num_slots,), dtype="int32", name=CATEGORICAL)
    numerical = keras.Input(dense.inputs[1].shape[1:], dtype="float32", name=NUMERICAL)
    return keras.Model([ids, numerical], dense([lookup(ids), numerical]), name="dlrm")
