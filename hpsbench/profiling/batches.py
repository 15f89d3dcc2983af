"""The keys that are asked: streams of batches, one batch for each table of a call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import ConfigError
from hpsbench.hps.sparse_model import SparseModel
from hpsbench.profiling.subject import Subject
from hpsbench.tables import KeyArray, histogram_stream, key_stream, recorded_stream

STREAMS = ("uniform", "zipf", "hot", "repeated")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The keys of one call, [batch_size, hotness] for each table, and the rows that hold them.

    A row of a key that its table lacks is 0: a peer that knows rows alone has as much to do.
    """

    keys: tuple[npt.NDArray[Any], ...]
    rows: tuple[KeyArray, ...]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Which keys are asked: `kind` of STREAMS, or those of a file; `text` says it to a reader."""

    kind: str = "zipf"
    zipf_alpha: float = 1.05
    hot_share: float = 0.9
    hot_keys: int = 100
    histogram: Path | None = None
    recorded: Path | None = None

    @property
    def text(self) -> str:
        """The stream in a few words."""
        if self.recorded is not None:
            return f"recorded in {self.recorded}"
        if self.histogram is not None:
            return f"as often as in {self.histogram}"
        return {
            "zipf": f"zipf, alpha {self.zipf_alpha:g}",
            "hot": f"hot, {self.hot_share:g} of them out of the same {self.hot_keys}",
        }.get(self.kind, self.kind)


def batches(
    subject: Subject, stream: Stream, *, batch_size: int, hotness: int, seed: int
) -> Iterator[Batch]:
    """Yield batches for ever. Raises ConfigError where a file does not fit the tables."""
    shape = (batch_size, hotness)
    if stream.histogram is None and stream.recorded is None:
        makers = [_of_kind(stream, m, shape, seed + i) for i, m in enumerate(subject.sparse_models)]
    else:
        if len(subject.table_ids) > 1:
            raise ConfigError(
                f"the keys of a file are of one table, and model {subject.model.model} has "
                f"{len(subject.table_ids)}",
                hint="name one: --table " + subject.table_names[0],
            )
        makers = [_of_file(stream, subject.sparse_models[0], shape, seed)]
    for of_tables in zip(*makers, strict=True):
        yield Batch(
            keys=tuple(keys.astype(subject.key_type) for keys, _ in of_tables),
            rows=tuple(rows for _, rows in of_tables),
        )


def _of_kind(
    stream: Stream, table: SparseModel, shape: tuple[int, ...], seed: int
) -> Iterator[tuple[KeyArray, KeyArray]]:
    num_keys = len(table.keys)
    for rows in key_stream(
        stream.kind,
        shape,
        num_keys,
        seed=seed,
        zipf_alpha=stream.zipf_alpha,
        hot_share=stream.hot_share,
        hot_keys=min(stream.hot_keys, num_keys),
    ):
        yield table.keys[rows], rows


def _of_file(
    stream: Stream, table: SparseModel, shape: tuple[int, ...], seed: int
) -> Iterator[tuple[KeyArray, KeyArray]]:
    if stream.recorded is not None:
        known = read_keys(stream.recorded)
        positions = recorded_stream(np.arange(len(known)), shape)
    else:
        assert stream.histogram is not None
        known, counts = read_histogram(stream.histogram)
        positions = histogram_stream(counts, shape, seed=seed)
    rows = _rows_of(known, table.keys)
    for drawn in positions:
        yield known[drawn], rows[drawn]


def _rows_of(wanted: KeyArray, keys: KeyArray) -> KeyArray:
    order = np.argsort(keys, kind="stable")
    places = np.searchsorted(keys, wanted, side="right", sorter=order) - 1
    rows = order[np.maximum(places, 0)]
    return np.where(keys[rows] == wanted, rows, 0)


def read_keys(path: Path) -> KeyArray:
    """Return the int64[n] keys of a file, in its order: `.npy`, or integers as text.

    Raises ConfigError where it cannot be read or holds no key.
    """
    keys = _read(path, 1, "integers, between them blanks, commas or line ends").ravel()
    if not keys.size:
        raise ConfigError(f"{path} holds no key", hint="record some ids of real requests")
    return keys


def read_histogram(path: Path) -> tuple[KeyArray, KeyArray]:
    """Return the int64[n] keys of a file and how often each comes.

    The file is `.npy` int64[n, 2], or text with a key and its count in each line. Raises
    ConfigError where it cannot be read, a count is negative, or none is positive.
    """
    pairs = _read(path, 2, "a key and its count in each line")
    if pairs.size and pairs[:, 1].min() < 0:
        raise ConfigError(f"{path} holds a negative count", hint="count how often each key comes")
    if not pairs.size or not pairs[:, 1].any():
        raise ConfigError(f"{path} counts no key", hint="give at least one key a positive count")
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _read(path: Path, columns: int, rule: str) -> KeyArray:
    try:
        values = np.load(path) if path.suffix == ".npy" else _parse(path, columns)
        if values.dtype.kind not in "iu" or (columns == 2 and values.shape[1:] != (2,)):
            raise ValueError(f"it is {values.dtype}{list(values.shape)}")
        return values.astype(np.int64)
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} cannot be used: {reason}", hint=f"it must hold {rule}"
        ) from error


def _parse(path: Path, columns: int) -> KeyArray:
    lines = [line.replace(",", " ").split() for line in path.read_text("utf-8").splitlines()]
    words = [line for line in lines if line and not line[0].startswith("#")]
    if columns == 2:
        wrong = next((line for line in words if len(line) != 2), None)
        if wrong is not None:
            raise ValueError(f"a line has {len(wrong)} columns: {' '.join(wrong)[:60]}")
        return np.array([[int(w) for w in line] for line in words], np.int64).reshape(-1, 2)
    return np.array([int(word) for line in words for word in line], np.int64)


def take(stream: Iterator[Batch], count: int) -> list[Batch]:
    """Return the next `count` batches."""
    return list(itertools.islice(stream, count))
