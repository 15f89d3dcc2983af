"""The variants: every way to serve DLRM, or another kind of model, a file each.

A new variant is a new module here that defines `VARIANT`; nothing else names it.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from hpsbench.config import Suite
from hpsbench.errors import ConfigError
from hpsbench.models.build import require_kind
from hpsbench.models.triton_models import feature_inputs


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to serve a model; `name` is also that of the Triton model which clients ask."""

    name: str
    #: The kind of model that it serves, and whose `Build` it is exported from.
    kind: str = "dlrm"
    export: Callable[[Any], None]
    #: Every model to load, steps before the ensemble that uses them.
    models: tuple[str, ...]
    #: The models whose server-side times add up to this variant's.
    timed_models: tuple[str, ...]
    inputs: Callable[[Any], Mapping[str, npt.NDArray[Any]]] = feature_inputs
    #: What its dense part computes in: `float32` or `float16`.
    precision: str = "float32"
    #: Returns why there is no point in measuring it on this machine; None where there is one.
    #: Left out by default, and measured where it is asked for by name.
    left_out: Callable[[], str | None] = lambda: None
    #: Position in tables; variants of the published benchmarks come first, in their order.
    order: int = 100


def registered_variants() -> dict[str, Variant]:
    """Return every variant of this package by name, in the order of the tables."""
    modules = [
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    ]
    variants: list[Variant] = [module.VARIANT for module in modules]
    return {v.name: v for v in sorted(variants, key=lambda v: (v.order, v.name))}


def variants_of(suite: Suite) -> dict[str, Variant]:
    """Return every variant of the model that a suite serves, by name, in table order."""
    return {n: v for n, v in registered_variants().items() if v.kind == suite.model}


def select_variants(names: Sequence[str], suite: Suite | None = None) -> list[Variant]:
    """Return the variants of these names in table order; all of them when `names` is empty.

    With a suite, only those of its model. Raises ConfigError for an unknown one, and for one of
    another model.
    """
    known = registered_variants()
    choice = known if suite is None else variants_of(suite)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, choice, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"unknown variant {name!r}", hint=f"{meant}Known: {', '.join(choice)}"
            )
        if suite is not None:
            require_kind(known[name], suite)
    return [v for n, v in choice.items() if not names or n in names]


def default_variants(suite: Suite) -> tuple[list[Variant], dict[str, str]]:
    """Return the variants to measure where none is named, and why each other one is left out."""
    reasons = {name: variant.left_out() for name, variant in variants_of(suite).items()}
    measured = [v for name, v in variants_of(suite).items() if reasons[name] is None]
    return measured, {name: reason for name, reason in reasons.items() if reason is not None}
