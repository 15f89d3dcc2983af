"""Sparse-model folders: one embedding table on disk, as the files `key` and `emb_vector`.

`key` holds int64[n] and `emb_vector` float32[n x dim], both in the machine's byte order, with
nothing before, between or after.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import TableError

KEY_FILE = "key"
ROWS_FILE = "emb_vector"
_KEY_BYTES = 8
_FLOAT_BYTES = 4
# Written in pieces above 2 MiB, a file lies in the page cache in huge pages, and lookups map them.
_WRITE_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class SparseModel:
    """An open folder: `keys` int64[n] and `rows` float32[n, dim], mapped from disk, read-only."""

    folder: Path
    keys: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float32]


def write_sparse_model(
    folder: Path | str, keys: npt.ArrayLike, row_blocks: Iterable[npt.NDArray[Any]]
) -> Path:
    """Write a sparse-model folder, whole or not at all, and return its path.

    `keys` is int[n]; `row_blocks` are float[k, dim] whose k sum up to n, one after another, so
    that a table larger than memory can be written. A folder that is there is replaced. Raises
    TableError where the blocks are no n rows of one dim.
    """
    folder = Path(folder)
    keys = np.ascontiguousarray(keys)
    if keys.ndim != 1 or keys.dtype.kind not in "iu":
        raise TableError(
            f"sparse model {folder}: keys are {keys.dtype}{list(keys.shape)}",
            hint="pass a one-dimensional array of integers",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        unfinished.chmod(0o755)
        keys.astype(np.int64, copy=False).tofile(unfinished / KEY_FILE)
        num_rows = _write_rows(folder, unfinished / ROWS_FILE, row_blocks)
        if num_rows != len(keys):
            raise TableError(
                f"sparse model {folder}: {len(keys)} keys, and {num_rows} rows",
                hint="give as many rows as keys",
            )
        _replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def _write_rows(folder: Path, path: Path, row_blocks: Iterable[npt.NDArray[Any]]) -> int:
    num_rows, dim = 0, None
    with path.open("wb", buffering=_WRITE_BYTES) as file:
        for block in row_blocks:
            if block.ndim != 2 or dim not in (None, block.shape[1]) or block.dtype.kind != "f":
                expected = "[rows, dim]" if dim is None else f"[rows, {dim}]"
                raise TableError(
                    f"sparse model {folder}: a block is {block.dtype}{list(block.shape)}",
                    hint=f"every block must be float32{expected}",
                )
            num_rows, dim = num_rows + block.shape[0], block.shape[1]
            file.write(np.ascontiguousarray(block, dtype=np.float32).data)
    return num_rows


def _replace(unfinished: Path, folder: Path) -> None:
    if not folder.exists():
        unfinished.rename(folder)
        return
    outdated = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    folder.rename(outdated / folder.name)
    unfinished.rename(folder)
    shutil.rmtree(outdated)


def open_sparse_model(folder: Path | str, embedding_dim: int) -> SparseModel:
    """Return the keys and rows of a sparse-model folder, memory-mapped.

    Raises TableError, naming folder and sizes, where a file is missing, empty or no multiple of
    its element, or where the two do not belong together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TableError(
            f"sparse model {folder} is not a folder",
            hint=f"give a folder that holds {KEY_FILE} and {ROWS_FILE}",
        )
    num_keys = _count(folder / KEY_FILE, _KEY_BYTES, "8 bytes, one int64 key each")
    num_rows = _count(
        folder / ROWS_FILE,
        _FLOAT_BYTES,
        "4 bytes, one float32 each",
    )
    if num_rows != num_keys * embedding_dim:
        raise TableError(
            f"sparse model {folder}: {ROWS_FILE} has {num_rows * _FLOAT_BYTES} bytes, and "
            f"{num_keys} keys x {embedding_dim} float32 are "
            f"{num_keys * embedding_dim * _FLOAT_BYTES}",
            hint="write the folder again if it was cut, or mend the embedding vector size",
        )
    return SparseModel(
        folder=folder,
        keys=np.memmap(folder / KEY_FILE, dtype=np.int64, mode="r"),
        rows=np.memmap(
            folder / ROWS_FILE, dtype=np.float32, mode="r", shape=(num_keys, embedding_dim)
        ),
    )


def _count(path: Path, item_bytes: int, rule: str) -> int:
    try:
        num_bytes = os.stat(path).st_size
    except OSError as error:
        raise TableError(
            f"sparse model file {path}: {error.strerror}",
            hint=f"a sparse model holds {KEY_FILE} and {ROWS_FILE}",
        ) from error
    if num_bytes == 0 or num_bytes % item_bytes:
        raise TableError(
            f"sparse model file {path} has {num_bytes} bytes",
            hint=f"it must hold a positive multiple of {rule}; write the folder again",
        )
    return num_bytes // item_bytes
