"""What tells one version of a sparse model from another: a digest of all that is in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpsbench.config import environment
from hpsbench.hps.sparse_model import KEY_FILE, ROWS_FILE, SparseModel

_PIECE_BYTES = 16 << 20


def fingerprint(sparse_model: SparseModel) -> str:
    """Return 32 hexadecimal digits that change with any key or row of the folder.

    The files are read once, on all cores: the cache folder remembers the digest of files whose
    size, time of change and inode are the same.
    """
    files = [sparse_model.folder / KEY_FILE, sparse_model.folder / ROWS_FILE]
    identity = [_identity(path) for path in files]
    name = hashlib.sha256(str(sparse_model.folder.resolve()).encode()).hexdigest()[:32]
    remembered = environment().cache_dir / "fingerprints" / f"{name}.json"
    try:
        known = json.loads(remembered.read_text("utf-8"))
        if known["identity"] == identity:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = _digest(files, sparse_model.rows.shape[1])
    # Where it cannot be remembered, the files are read again the next time.
    with contextlib.suppress(OSError):
        remembered.parent.mkdir(parents=True, exist_ok=True)
        unfinished = remembered.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        unfinished.write_text(json.dumps({"identity": identity, "digest": digest}), "utf-8")
        unfinished.replace(remembered)
    return digest


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _digest(files: list[Path], dim: int) -> str:
    pieces = [
        (path, begin) for path in files for begin in range(0, path.stat().st_size, _PIECE_BYTES)
    ]
    whole = hashlib.blake2b(str(dim).encode(), digest_size=16)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for piece in pool.map(_piece_digest, pieces):
            whole.update(piece)
    return whole.hexdigest()


def _piece_digest(piece: tuple[Path, int]) -> bytes:
    path, begin = piece
    with path.open("rb") as file:
        file.seek(begin)
        content = file.read(_PIECE_BYTES)
    return hashlib.blake2b(f"{path.name} {begin} ".encode() + content, digest_size=16).digest()
