"""Figures that others published, as data: `<baselines>/published/*.json`.

They are of other machines, so only their ratios can be compared with what is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpsbench import storage
from hpsbench.baselines import PUBLISHED_FOLDER

SCHEMA_VERSION = 1
RESTORE_HINT = "restore the file from git"
COMPUTE_INFER = "compute_infer"
THROUGHPUT = "throughput"
#: What one unit of a table is in nanoseconds, or in samples per second.
UNITS = {
    COMPUTE_INFER: {"us": 1e3, "ms": 1e6},
    THROUGHPUT: {"k samples/s": 1e3},
}
#: Times are published to a microsecond, of some hundreds.
_ROUNDING = 2e-3


@dataclass(frozen=True, kw_only=True)
class PublishedColumn:
    """What is published as `label`, and is our `variant`; a value per batch size of its table."""

    variant: str
    label: str
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """One quantity by batch size; `native` is the variant that the publication starts from."""

    quantity: str
    unit: str
    native: str
    batch_sizes: tuple[int, ...]
    columns: tuple[PublishedColumn, ...]

    def __post_init__(self) -> None:
        if self.unit not in UNITS.get(self.quantity, {}):
            raise ValueError(f"{self.quantity} in {self.unit}")
        for column in self.columns:
            if len(column.values) != len(self.batch_sizes):
                raise ValueError(
                    f"{column.label} has {len(column.values)} values "
                    f"for {len(self.batch_sizes)} batch sizes"
                )
        if self.native not in (column.variant for column in self.columns):
            raise ValueError(f"native {self.native} is no column")

    @property
    def is_line(self) -> bool:
        """Whether it can be drawn over batch size: one point is no line."""
        return len(self.batch_sizes) > 1

    def values_of(self, variant: str) -> dict[int, float]:
        """Return nanoseconds or samples per second by batch size; empty for an unknown variant."""
        scale = UNITS[self.quantity][self.unit]
        for column in self.columns:
            if column.variant == variant:
                scaled = (value * scale for value in column.values)
                return dict(zip(self.batch_sizes, scaled, strict=True))
        return {}


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """One published number that stands in no table, of our `variant`."""

    variant: str
    name: str
    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """One source: what it measured, on what, and its figures; `name` is short for headings."""

    name: str
    title: str
    source: str
    hardware: str
    versions: Mapping[str, str]
    notes: str
    tables: tuple[PublishedTable, ...]
    figures: tuple[PublishedFigure, ...]

    def table(self, quantity: str) -> PublishedTable | None:
        """Return the table of a quantity, None where none is published."""
        return next((table for table in self.tables if table.quantity == quantity), None)

    @property
    def derives_throughput(self) -> bool:
        """Whether its throughput is batch size over compute infer: no second measurement."""
        infer, throughput = self.table(COMPUTE_INFER), self.table(THROUGHPUT)
        if infer is None or throughput is None:
            return False
        times_ns = {c.variant: infer.values_of(c.variant) for c in infer.columns}
        return all(
            (infer_ns := times_ns.get(column.variant, {}).get(size)) is not None
            and math.isclose(value, size * 1e9 / infer_ns, rel_tol=_ROUNDING)
            for column in throughput.columns
            for size, value in throughput.values_of(column.variant).items()
        )


def load(baselines_folder: Path) -> tuple[Publication, ...]:
    """Return every publication below a folder of baselines, by file name; none without a folder.

    Raises BaselineError for a file that cannot be read or understood.
    """
    paths = sorted((baselines_folder / PUBLISHED_FOLDER).glob("*.json"))
    return tuple(
        storage.read(Publication, path, schema_version=SCHEMA_VERSION, restore=RESTORE_HINT)
        for path in paths
    )
