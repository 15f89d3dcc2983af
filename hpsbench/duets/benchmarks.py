"""What a comparison asks: models at batch sizes, each of which is decided by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DuetBenchmark:
    """A model, asked on both sides with so many samples a request; verdicts call it `name`."""

    name: str
    model: str
    batch_size: int = 1


def benchmarks_of(places: Iterable[tuple[str, int]]) -> tuple[DuetBenchmark, ...]:
    """Return the benchmark of each model and batch size, each once, in order.

    They are called `model-b32`; one alone is called by its model. Raises ValueError for none.
    """
    distinct = tuple(dict.fromkeys(places))
    if not distinct:
        raise ValueError("a comparison needs a benchmark")
    alone = len(distinct) == 1
    return tuple(
        DuetBenchmark(name=model if alone else f"{model}-b{size}", model=model, batch_size=size)
        for model, size in distinct
    )
