"""A memory budget as text for a terminal: a line for each table, and sums."""

from __future__ import annotations

from collections.abc import Sequence

from hpsbench.hps.budget import Budget, ModelBudget
from hpsbench.report.notation import DASH, significant

_NAME_WIDTH = 16
_COLUMNS = (
    ("rows", 14), ("dim", 5), ("index", 9), ("mapped", 9), ("volatile", 9), ("GPU", 9),
    ("locked", 9),
)  # fmt: skip


def lines(budget: Budget) -> list[str]:
    """Return the models with their tables, and what the columns mean."""
    text = []
    for model in budget.models:
        text += [
            f"model {model.model.model}: {_caching(model)}",
            _row("table", _heads()),
            *_tables(model),
            "",
        ]
    return [
        *text,
        "index: on the host, for good; mapped: rows in the page cache; volatile: copies",
        "of rows on the host, at most; GPU: on each GPU; locked: page-locked on the host,",
        "for each GPU",
    ]


def size(num_bytes: int) -> str:
    """Return `0 B`, `999 B`, `1.50 KiB`, `12.3 GiB`: three digits and the unit that suits them."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{num_bytes} B" if units[0] == "B" else f"{significant(value, 3)} {units[0]}"


def _caching(budget: ModelBudget) -> str:
    model = budget.model
    if not model.gpucache:
        return "no GPU cache"
    devices = ", ".join(map(str, budget.devices))
    share = "" if model.embedding_cache_type == "static" else f", gpucacheper {model.gpucacheper:g}"
    return f"{model.embedding_cache_type} cache on GPU {devices}{share}"


def _heads() -> list[str]:
    return [name for name, _ in _COLUMNS]


def _tables(budget: ModelBudget) -> list[str]:
    rows = [
        _row(
            table.name,
            [
                f"{table.num_keys:,}",
                str(table.embedding_dim),
                size(table.index_bytes) if table.index_kind == "hash" else DASH,
                size(table.mapped_bytes),
                size(table.volatile_bytes),
                size(table.gpu_bytes),
                size(table.page_locked_bytes),
            ],
        )
        for table in budget.tables
    ]
    if budget.lookup_gpu_bytes:
        lookups = (budget.lookup_gpu_bytes, budget.lookup_page_locked_bytes)
        rows.append(_row("(lookups)", ["", "", "", "", "", *map(size, lookups)]))
    if len(rows) > 1:
        sums = [
            "",
            size(sum(table.index_bytes for table in budget.tables)),
            size(sum(table.mapped_bytes for table in budget.tables)),
            size(sum(table.volatile_bytes for table in budget.tables)),
            size(budget.gpu_bytes),
            size(budget.page_locked_bytes),
        ]
        num_keys = sum(table.num_keys for table in budget.tables)
        rows.append(_row("together", [f"{num_keys:,}", *sums]))
    return rows


def _row(name: str, cells: Sequence[str]) -> str:
    widths = [width for _, width in _COLUMNS]
    return f"{name:<{_NAME_WIDTH}}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)
    )
