"""DLRM in plain sight: seeded weights, and the NumPy forward pass that every variant must match.

Source: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems" (2019), in the shape of the published benchmark: 26 slots into one table of width 128, 13
numerical features, bottom MLP 512-256-128, dot interaction, top MLP 1024-1024-512-256-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from hpsbench.config import DlrmConfig, TableConfig

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One fully connected layer: kernel float32[inputs, units], bias float32[units]."""

    kernel: FloatArray
    bias: FloatArray


@dataclass(frozen=True)
class DlrmWeights:
    """The dense weights, the same for every variant so that their answers can be compared."""

    bottom: tuple[Layer, ...]
    top: tuple[Layer, ...]


def interaction_pairs(num_slots: int) -> int:
    """Return how many pairs the dot interaction of `num_slots` + 1 vectors has (26 slots: 351)."""
    return num_slots * (num_slots + 1) // 2


def seeded_weights(dlrm: DlrmConfig, embedding_dim: int) -> DlrmWeights:
    """Return Glorot-normal kernels and small biases; the same seed gives the same weights."""
    generator = np.random.default_rng(dlrm.seed)

    def mlp(inputs: int, widths: Sequence[int]) -> tuple[Layer, ...]:
        layers = []
        for units in widths:
            kernel = generator.standard_normal((inputs, units), np.float32)
            kernel *= np.float32(np.sqrt(2.0 / (inputs + units)))
            bias = generator.standard_normal(units, np.float32) * np.float32(units**-0.5)
            layers.append(Layer(kernel, bias))
            inputs = units
        return tuple(layers)

    bottom = mlp(dlrm.num_numerical, (*dlrm.bottom_mlp, embedding_dim))
    top = mlp(embedding_dim + interaction_pairs(dlrm.num_slots), dlrm.top_mlp)
    return DlrmWeights(bottom, top)


def forward(weights: DlrmWeights, vectors: FloatArray, numerical: FloatArray) -> FloatArray:
    """Return float32[batch, 1] probabilities, of embedding vectors and numerical features.

    vectors: float32[batch, slots, dim], numerical: float32[batch, num_numerical].
    """
    dense = numerical
    for layer in weights.bottom:
        dense = np.maximum(dense @ layer.kernel + layer.bias, 0)
    hidden = dot_interaction(dense, vectors)
    for layer in weights.top[:-1]:
        hidden = np.maximum(hidden @ layer.kernel + layer.bias, 0)
    logit = hidden @ weights.top[-1].kernel + weights.top[-1].bias
    # exp of the negative absolute value cannot overflow, whatever the logit.
    decay = np.exp(-np.abs(logit))
    return cast("FloatArray", np.where(logit >= 0, np.float32(1), decay) / (1 + decay))


def dot_interaction(dense: FloatArray, vectors: FloatArray) -> FloatArray:
    """Return [n, dim + pairs]: the dense vectors [n, dim], and the products of every pair.

    Pairs among the dense vector, number 0, and vectors [n, slots, dim], as (1, 0), (2, 0), (2, 1).
    """
    stacked = np.concatenate([dense[:, None, :], vectors], axis=1)
    products = stacked @ stacked.transpose(0, 2, 1)
    rows, columns = np.tril_indices(stacked.shape[1], k=-1)
    return np.concatenate([dense, products[:, rows, columns]], axis=1)


@dataclass(frozen=True)
class Batch:
    """One request's features: categorical int32[batch, slots], numerical float32[batch, n]."""

    categorical: npt.NDArray[np.int32]
    numerical: FloatArray

    @property
    def size(self) -> int:
        return len(self.categorical)

    def first(self, samples: int) -> Batch:
        """Return its first `samples`, all where it has no more."""
        return Batch(self.categorical[:samples], self.numerical[:samples])


#: The request that the published benchmark prints, for a table of 32,709,138 rows.
PUBLISHED_KEYS = (
    276633, 7912898, 7946796, 7963854, 7971191, 7991237, 7991368, 7998351, 7999728, 8014930,
    13554004, 14136456, 14382203, 14382219, 14384425, 14395091, 14395194, 14395215, 14396165,
    14671338, 22562171, 25307802, 32394527, 32697105, 32709007, 32709104,
)  # fmt: skip
PUBLISHED_NUMERICAL = (
    3.76171875, 3.806640625, 1.609375, 4.04296875, 1.7919921875, 1.0986328125, 1.0986328125,
    1.609375, 2.9453125, 1.0986328125, 1.38671875, 8.3984375, 1.9462890625,
)  # fmt: skip


def published_request(tables: TableConfig) -> Batch:
    """Return the published sample as one Batch; its keys are folded into a smaller table."""
    keys = np.array([PUBLISHED_KEYS], np.int64) % tables.num_embeddings
    return Batch(keys.astype(np.int32), np.array([PUBLISHED_NUMERICAL], np.float32))


def numerical_features(batch_size: int, count: int, *, seed: int) -> FloatArray:
    """Return float32[batch_size, count] seeded features, log(1 + counts) as Criteo's are."""
    generator = np.random.default_rng([seed, batch_size, count])
    counts = generator.integers(0, 60, (batch_size, count))
    return cast("FloatArray", np.log1p(counts, dtype=np.float32))
