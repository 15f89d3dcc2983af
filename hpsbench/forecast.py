"""What a session will hold in memory, before a table is built: what does not fit is left out.

The estimates err upwards: a benchmark that is left out can be forced back by a smaller preset, one
that is killed for memory takes the whole session with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from hpsbench.config import Suite
from hpsbench.errors import ConfigError
from hpsbench.machine import find_gpus, free_memory_bytes, installed_versions
from hpsbench.models.kinds import kind_of
from hpsbench.workload import row_of, split_row

GIB = 2**30
#: A Python-backend model that has imported TensorFlow holds about this much, and so does pytest.
TENSORFLOW_PROCESS_BYTES = 550 * 2**20
#: On a GPU a process holds a context and libraries besides.
GPU_PROCESS_BYTES = 900 * 2**20
#: The parameter server's index takes 21.3 bytes a key in each process that holds one.
INDEX_BYTES_PER_ROW = 22
#: How often a request's vectors are held at once: as looked up, beside others, copied.
VECTOR_COPIES = 3
#: Variants that hold the rows in a variable: on the compute device, or always in host memory.
ON_DEVICE, ON_HOST = ("native_tf",), ("native_tf_hybrid",)

#: A row (`workload.row_of` a variant) and a batch size.
Place: TypeAlias = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What can be had, in bytes; `gpu` is None where nothing runs on a GPU."""

    host: int
    gpu: int | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The places that fit together, and why each other one does not."""

    fits: tuple[Place, ...]
    left_out: dict[Place, str]


def free_memory() -> Memory:
    """Return what can be had here: of a GPU too, where TensorFlow would use it."""
    gpus = () if "tensorflow-cpu" in installed_versions() else find_gpus()
    return Memory(host=free_memory_bytes(), gpu=gpus[0].memory_bytes if gpus else None)


def forecast(suite: Suite, places: Sequence[Place], memory: Memory) -> Forecast:
    """Return which places a session can hold at once.

    The largest batch sizes go first, down to the smallest; then variants, the last of the table
    first. The one that the others are compared with stays with the smallest batch size.
    """
    kept, left_out = list(places), {}
    while kept and (problem := _problem(suite, kept, memory)) is not None:
        going = _next_to_go(suite, kept)
        if not going:
            break
        for place in going:
            left_out[place] = problem
        kept = [place for place in kept if place not in left_out]
    return Forecast(fits=tuple(kept), left_out=left_out)


def needed(suite: Suite, places: Sequence[Place], *, on_gpu: bool) -> Memory:
    """Return what these places hold together at their widest; there is no other estimate."""
    return Memory(
        host=host_bytes(suite, places, on_gpu=on_gpu),
        gpu=gpu_bytes(suite, places) if on_gpu else None,
    )


def places_of(suite: Suite, variants: Sequence[str]) -> list[Place]:
    """Return all places of these variants: each of their rows with each batch size."""
    streams = ("", *suite.load.also_keys)
    rows = [row_of(variant, keys) for keys in streams for variant in variants]
    return [(row, size) for size in suite.load.batch_sizes for row in rows]


def require(suite: Suite, places: Sequence[Place], memory: Memory) -> None:
    """Raise ConfigError where these places do not fit together."""
    problem = _problem(suite, places, memory)
    if problem is not None:
        raise ConfigError(
            f"preset {suite.preset} is too large for this machine: {problem}",
            hint="choose a smaller preset (--preset laptop, smoke), or lower "
            "--set tables.num_embeddings=ROWS",
        )


def host_bytes(suite: Suite, places: Sequence[Place], *, on_gpu: bool) -> int:
    """Return what these hold of the host's memory at their widest."""
    variants, footprint = _variants(suite, places), kind_of(suite).footprint(suite)
    hps = [v for v in variants if v not in (*ON_DEVICE, *ON_HOST)]
    in_variables = [v for v in variants if v in ON_HOST or (v in ON_DEVICE and not on_gpu)]
    # Mapped files are shared by whoever reads them; without a GPU's cache they must stay there.
    rows = footprint.row_bytes * (len(in_variables) + bool(hps))
    index = INDEX_BYTES_PER_ROW * footprint.num_rows * len(hps)
    processes = (len(variants) + 1) * TENSORFLOW_PROCESS_BYTES
    activations = 0 if on_gpu else sum(_activation_bytes(suite, s) for s in _widest(suite, places))
    requests = sum(_request_bytes(suite, size) for size in _widest(suite, places))
    return rows + index + processes + activations + requests


def gpu_bytes(suite: Suite, places: Sequence[Place]) -> int:
    """Return what these hold of the GPU's memory at their widest."""
    variants, footprint = _variants(suite, places), kind_of(suite).footprint(suite)
    caching = [v for v in variants if v not in (*ON_DEVICE, *ON_HOST)] * suite.hps.gpucache
    rows = footprint.row_bytes * sum(v in ON_DEVICE for v in variants)
    caches = round(min(suite.hps.gpucacheper, 1.0) * footprint.row_bytes) * len(caching)
    activations = sum(_activation_bytes(suite, size) for size in _widest(suite, places))
    return rows + caches + activations + len(variants) * GPU_PROCESS_BYTES


def _problem(suite: Suite, places: Sequence[Place], memory: Memory) -> str | None:
    wants = needed(suite, places, on_gpu=memory.gpu is not None)
    for where, wanted, had in (
        ("host", wants.host, memory.host), ("GPU", wants.gpu or 0, memory.gpu or 0)
    ):  # fmt: skip
        if wanted > had:
            largest = max(size for _, size in places)
            count = len(_variants(suite, places))
            return (
                f"up to batch {largest} with {count} variants it would need about "
                f"{wanted / GIB:.1f} GiB of {where} memory, and {had / GIB:.1f} GiB are free"
            )
    return None


def _next_to_go(suite: Suite, places: Sequence[Place]) -> list[Place]:
    sizes = sorted({size for _, size in places})
    if len(sizes) > 1:
        return [place for place in places if place[1] == sizes[-1]]
    others = [v for v in _variants(suite, places) if v != kind_of(suite).reference]
    return [place for place in places if others and split_row(place[0])[0] == others[-1]]


def _variants(suite: Suite, places: Sequence[Place]) -> list[str]:
    """Return the variants that are served, the one that others are compared with included."""
    rows = [row for row, _ in places]
    return list(dict.fromkeys([kind_of(suite).reference, *(split_row(row)[0] for row in rows)]))


def _widest(suite: Suite, places: Sequence[Place]) -> list[int]:
    """Return the largest batch size that each variant's process will be asked with."""
    largest = max(size for _, size in places)
    return [largest] * len(_variants(suite, places))


def _activation_bytes(suite: Suite, batch_size: int) -> int:
    footprint = kind_of(suite).footprint(suite)
    return 4 * batch_size * (VECTOR_COPIES * footprint.vector_values + footprint.dense_values)


def _request_bytes(suite: Suite, batch_size: int) -> int:
    # As encoded by the client, and as received.
    return 2 * batch_size * kind_of(suite).footprint(suite).request_bytes
