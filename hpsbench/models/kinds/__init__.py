"""The models that are served, a file each: DLRM, and the many-table model.

A suite's section says which (`Suite.model`); the module of that name here defines `KIND`, and the
variants of `models/variants` say by the same name whose they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hpsbench.config import Suite

if TYPE_CHECKING:
    from hpsbench.models.build import Build


class Batch(Protocol):
    """The features of one request, in whatever arrays its model takes."""

    @property
    def size(self) -> int:
        """Return how many samples it has."""

    def first(self, samples: int) -> Batch:
        """Return its first `samples`, all where it has no more."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a model holds in memory by its sizes: rows and bytes of all tables, then of a sample.

    `vector_values` are the float32 of a sample's embedding vectors, `dense_values` those that the
    dense part has at its widest; `request_bytes` are as the client sends them.
    """

    num_rows: int
    row_bytes: int
    vector_values: int
    dense_values: int
    request_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """A model that can be served in several ways: all in which one differs from another."""

    #: The section of a suite that describes it.
    name: str
    title: str
    #: The variant that the others are compared with.
    reference: str
    #: What its variants are exported from, with the NumPy reference.
    build: type[Build]
    #: Yields batches of a size for ever, their keys from a stream that is named.
    batches: Callable[[Suite, int, str], Iterator[Any]]
    footprint: Callable[[Suite], Footprint]
    #: The preset whose answers prove every other's; empty where each proves its own.
    parity_preset: str = ""


def kind_of(suite: Suite) -> ModelKind:
    """Return the model that a suite serves."""
    return kind_named(suite.model)


def kind_named(name: str) -> ModelKind:
    """Return the model of this section's name."""
    # By name, for what a kind builds needs this module.
    kind: ModelKind = importlib.import_module(f"{__name__}.{name}").KIND
    return kind
