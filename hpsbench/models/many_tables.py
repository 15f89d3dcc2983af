"""The many-table model in plain sight: a lookup per table, and one dense layer on all vectors.

Source: NVIDIA's "HPS Table Fusion Demo": N tables of 10,000 keys, 26 keys per table and sample. The
keys of a table go on where those of the table before ended, for tables that are stored as one must
not share any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpsbench.config import Suite
from hpsbench.models.dlrm import Layer
from hpsbench.tables import key_stream

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TableKeys:
    """One request's keys: int32[num_tables, batch, hotness]."""

    keys: npt.NDArray[np.int32]

    @property
    def size(self) -> int:
        return self.keys.shape[1]

    def first(self, samples: int) -> TableKeys:
        """Return its first `samples`, all where it has no more."""
        return TableKeys(self.keys[:, :samples])


def input_names(num_tables: int) -> list[str]:
    """Return what each table's keys are called in a request: `table0` and on."""
    return [f"table{i}" for i in range(num_tables)]


def num_vector_values(suite: Suite) -> int:
    """Return how many float32 the vectors of one sample are."""
    assert suite.fusion is not None
    return suite.fusion.num_tables * suite.fusion.hotness * suite.tables.embedding_dim


def seeded_layer(suite: Suite) -> Layer:
    """Return the dense layer, one unit; the same seed gives the same weights."""
    assert suite.fusion is not None
    generator = np.random.default_rng(suite.fusion.seed)
    inputs = num_vector_values(suite)
    kernel = generator.standard_normal((inputs, 1), np.float32)
    kernel *= np.float32(np.sqrt(2.0 / (inputs + 1)))
    return Layer(kernel, generator.standard_normal(1, np.float32))


def batches(suite: Suite, batch_size: int, keys: str) -> Iterator[TableKeys]:
    """Yield batches for ever, each table's keys from its part of the stream."""
    assert suite.fusion is not None
    fusion, rows = suite.fusion, suite.tables.num_embeddings
    stream = key_stream(
        keys,
        (fusion.num_tables, batch_size, fusion.hotness),
        rows,
        seed=suite.load.seed,
        zipf_alpha=suite.load.zipf_alpha,
    )
    first = np.arange(fusion.num_tables)[:, None, None] * rows
    return (TableKeys((drawn + first).astype(np.int32)) for drawn in stream)


def forward(layer: Layer, tables: Sequence[FloatArray], batch: TableKeys) -> FloatArray:
    """Return float32[batch, 1], of tables float32[rows, dim] each, of equally many rows."""
    rows = len(tables[0])
    vectors = [
        table[keys - i * rows].reshape(batch.size, -1)
        for i, (table, keys) in enumerate(zip(tables, batch.keys, strict=True))
    ]
    answer: FloatArray = np.concatenate(vectors, axis=1) @ layer.kernel + layer.bias
    return answer
