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
        # The variable itself, not Keras' wrapper: then the rows are gathered where they are, and
        # not first read as a whole.
        return tf.nn.embedding_lookup(self.table.value, ids)


class DotInteraction(keras.layers.Layer):  # type: ignore[misc]
    """Dot products of every pair among the dense vector and the embedding vectors.

    The dense vector comes with `zero_vectors` vectors of zeros behind it in one row, which take
    part in the product of matrices. `zero_products` of theirs follow the pairs.
    """

    def __init__(self, zero_vectors: int = 0, zero_products: int = 0, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._zero_vectors, self._zero_products = zero_vectors, zero_products

    def call(self, dense: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        zeros, (_, slots, dim) = self._zero_vectors, vectors.shape
        stacked = tf.concat([tf.reshape(dense, [-1, 1 + zeros, dim]), vectors], axis=1)
        products = tf.matmul(stacked, stacked, transpose_b=True)
        count = 1 + zeros + slots
        place = np.array([0, *range(1 + zeros, count)])
        rows, columns = (place[i] for i in np.tril_indices(1 + slots, k=-1))
        zero_product = 1 * count + 1
        wanted = [*(rows * count + columns), *[zero_product] * self._zero_products]
        flat = tf.reshape(products, [-1, count * count])
        return tf.gather(flat, np.array(wanted, np.int32), axis=1)


class XlaCompiled(keras.layers.Layer):  # type: ignore[misc]
    """A model whose work XLA fuses, compiled when a batch size is first asked."""

    def __init__(self, model: keras.Model, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._model = model
        self._compiled = tf.function(
            lambda *inputs: model(list(inputs), training=False), jit_compile=True, autograph=False
        )

    def call(self, *inputs: tf.Tensor) -> tf.Tensor:
        return self._compiled(*inputs)


def compiled_by_xla(model: keras.Model) -> keras.Model:
    """Return the same model, of which XLA compiles all."""
    return keras.Model(model.inputs, XlaCompiled(model, name="xla")(*model.inputs))


def dense_model(
    dlrm: DlrmConfig, weights: DlrmWeights, embedding_dim: int, *, multiple: int = 1
) -> keras.Model:
    """Return the model (vectors [batch, slots, dim], numerical [batch, n]) -> float32[batch, 1].

    With a `multiple`, matrices are filled up with zeros until the lengths that DLRM makes odd (27
    vectors, 479 inputs of the top MLP) are multiples of it: the same answers, and products that
    tensor cores compute two to four times as fast.
    """
    zero_vectors = -(dlrm.num_slots + 1) % multiple
    top_inputs = len(weights.top[0].kernel)
    zero_products = -top_inputs % multiple if zero_vectors else 0
    bottom = [*weights.bottom[:-1], _widened(weights.bottom[-1], zero_vectors * embedding_dim)]
    top = [_lengthened(weights.top[0], zero_products), *weights.top[1:]]

    vectors = keras.Input((dlrm.num_slots, embedding_dim), dtype="float32", name="vectors")
    numerical = keras.Input((dlrm.num_numerical,), dtype="float32", name=NUMERICAL)
    dense = numerical
    for index, layer in enumerate(bottom):
        dense = fully_connected(layer, "relu", f"bottom_{index}")(dense)
    pairs = DotInteraction(zero_vectors, zero_products, name="interaction")(dense, vectors)
    if zero_vectors:
        dense = dense[:, :embedding_dim]
    hidden = keras.layers.Concatenate(name="dense_and_pairs")([dense, pairs])
    for index, layer in enumerate(top):
        activation = "relu" if index < len(weights.top) - 1 else "sigmoid"
        hidden = fully_connected(layer, activation, f"top_{index}")(hidden)
    return keras.Model([vectors, numerical], hidden, name="dlrm_dense")


def _widened(layer: Layer, units: int) -> Layer:
    return Layer(np.pad(layer.kernel, [(0, 0), (0, units)]), np.pad(layer.bias, (0, units)))


def _lengthened(layer: Layer, inputs: int) -> Layer:
    return Layer(np.pad(layer.kernel, [(0, inputs), (0, 0)]), layer.bias)


def fully_connected(layer: Layer, activation: str | None, name: str) -> keras.layers.Dense:
    """Return the Keras layer of these weights."""
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
