"""Embedding rows and key streams, seeded: the same configuration gives the same bytes anywhere.

Rows come in blocks, each with its own generator, so that a table of any size can be written, read
again in part and compared without ever being held whole.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import numpy as np
import numpy.typing as npt

from hpsbench.config import TableConfig

#: Rows per generator; part of what a seed means, so a change here changes every table.
BLOCK_ROWS = 16_384

FloatArray = npt.NDArray[np.float32]
KeyArray = npt.NDArray[np.int64]


def row_block(config: TableConfig, block: int) -> FloatArray:
    """Return float32[n, embedding_dim], the rows from `block * BLOCK_ROWS`; n <= BLOCK_ROWS.

    Values are uniform in +-(9 / dim)**0.25, which gives the dot product of two rows a variance of
    one: then a wrong row shows in DLRM's answer. (With the published initialisation,
    +-1/sqrt(num_embeddings), a million rows hardly move it, and parity would prove nothing.)
    """
    start = block * BLOCK_ROWS
    if not 0 <= start < config.num_embeddings:
        raise ValueError(f"block {block} is outside a table of {config.num_embeddings} rows")
    count = min(BLOCK_ROWS, config.num_embeddings - start)
    generator = np.random.Generator(np.random.SFC64([config.seed, block]))
    rows = generator.random((count, config.embedding_dim), dtype=np.float32)
    bound = np.float32((9.0 / config.embedding_dim) ** 0.25)
    rows -= np.float32(0.5)
    rows *= 2 * bound
    return rows


def row_blocks(config: TableConfig) -> Iterator[FloatArray]:
    """Yield the table's rows in order, a block at a time, generated ahead on every core."""
    blocks = iter(range(-(-config.num_embeddings // BLOCK_ROWS)))
    ahead: deque[Future[FloatArray]] = deque()
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for block in blocks:
            ahead.append(pool.submit(row_block, config, block))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def embedding_rows(config: TableConfig, keys: npt.ArrayLike) -> FloatArray:
    """Return float32[len(keys), embedding_dim], the rows of these keys, in any order.

    Generates only the blocks that hold them; raises IndexError for a key outside the table.
    """
    wanted = np.asarray(keys, dtype=np.int64).ravel()
    if wanted.size and (wanted.min() < 0 or wanted.max() >= config.num_embeddings):
        raise IndexError(f"keys must be in [0, {config.num_embeddings})")
    rows = np.empty((wanted.size, config.embedding_dim), np.float32)
    blocks = wanted // BLOCK_ROWS
    for block in np.unique(blocks):
        here = blocks == block
        rows[here] = row_block(config, int(block))[wanted[here] - block * BLOCK_ROWS]
    return rows


def key_stream(
    kind: str,
    shape: tuple[int, ...],
    num_embeddings: int,
    *,
    seed: int,
    zipf_alpha: float = 1.05,
    hot_share: float = 0.9,
    hot_keys: int | None = None,
) -> Iterator[KeyArray]:
    """Yield int64[shape] key batches in [0, num_embeddings) for ever.

    `repeated`: one uniform batch, again and again (as published: best case for a cache);
    `uniform`: a new uniform batch each time; `zipf`: popularity ~ rank**-zipf_alpha, the ranks
    scattered over the key space; `hot`: a `hot_share` of the keys out of the same `hot_keys` (by
    default: nine in ten, out of a hundredth of the table).
    """
    if hot_keys is None:
        hot_keys = max(1, num_embeddings // 100)
    generator = np.random.default_rng([seed, *shape])
    if kind == "repeated":
        batch = generator.integers(num_embeddings, size=shape)
        while True:
            yield batch
    while True:
        if kind == "uniform":
            yield generator.integers(num_embeddings, size=shape)
        elif kind == "zipf":
            yield _scatter(
                _zipf_ranks(generator, shape, num_embeddings, zipf_alpha), num_embeddings
            )
        elif kind == "hot":
            hot = generator.integers(hot_keys, size=shape)
            cold = generator.integers(num_embeddings, size=shape)
            yield _scatter(np.where(generator.random(shape) < hot_share, hot, cold), num_embeddings)
        else:
            raise ValueError(f"unknown key stream {kind!r}")


def histogram_stream(
    counts: npt.ArrayLike, shape: tuple[int, ...], *, seed: int
) -> Iterator[KeyArray]:
    """Yield int64[shape] batches of positions in `counts`, each as often as its count says.

    Raises ValueError where a count is negative, or none is positive.
    """
    weights = np.asarray(counts, dtype=np.float64)
    if weights.ndim != 1 or not weights.size or not weights.min() >= 0 or not weights.sum() > 0:
        raise ValueError("counts must be one dimension, none negative, and some positive")
    # The positions that are ever drawn, and where each one's part of [0, total) ends.
    positions = np.flatnonzero(weights)
    ends = np.cumsum(weights[positions])
    generator = np.random.default_rng([seed, *shape])
    while True:
        drawn = np.searchsorted(ends, generator.random(shape) * ends[-1], side="right")
        yield positions[np.minimum(drawn, len(positions) - 1)]


def recorded_stream(keys: npt.ArrayLike, shape: tuple[int, ...]) -> Iterator[KeyArray]:
    """Yield int64[shape] batches of recorded keys in their order, and from the first again.

    Raises ValueError where there is no key.
    """
    recorded = np.asarray(keys, dtype=np.int64).ravel()
    if not recorded.size:
        raise ValueError("there is no recorded key")
    size, begin = int(np.prod(shape)), 0
    while True:
        yield recorded.take(np.arange(begin, begin + size), mode="wrap").reshape(shape)
        begin = (begin + size) % recorded.size


def _zipf_ranks(
    generator: np.random.Generator, shape: tuple[int, ...], count: int, alpha: float
) -> KeyArray:
    # The inverse of the continuous bounded power law: O(1) per key, where a table of cumulated
    # probabilities would cost 8 bytes per row of a 32,709,138-row table.
    uniform = generator.random(shape)
    if abs(alpha - 1.0) < 1e-9:
        ranks = np.exp(uniform * np.log(count + 1.0))
    else:
        power = 1.0 - alpha
        ranks = (1.0 + uniform * ((count + 1.0) ** power - 1.0)) ** (1.0 / power)
    return cast("KeyArray", np.clip(ranks.astype(np.int64) - 1, 0, count - 1))


def _scatter(ranks: KeyArray, count: int) -> KeyArray:
    # A multiplier that shares no divisor with `count` permutes [0, count): neighbours in rank,
    # hence the hottest keys, do not sit on neighbouring rows.
    multiplier = 2_654_435_761 % count or 1
    while np.gcd(multiplier, count) != 1:
        multiplier += 1
    return (ranks * multiplier) % count
