"""From a `Suite` to a model repository that Triton can serve: tables first, then each variant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpsbench.config import Suite
from hpsbench.errors import ConfigError
from hpsbench.models.kinds import kind_named, kind_of
from hpsbench.models.repository import ModelRepository
from hpsbench.presets import load_suite, preset_names

if TYPE_CHECKING:
    from hpsbench.models.variants import Variant


@dataclass(frozen=True)
class Build(ABC):
    """What every variant of a model is exported from: tables on disk, and one set of weights."""

    suite: Suite
    folder: Path
    repository: ModelRepository
    variants: tuple[Variant, ...] = ()

    @abstractmethod
    def write_tables(self, progress: Callable[[str], None]) -> None:
        """Write the tables, and the parameter server's configuration of them."""

    @abstractmethod
    def answer(self, batch: Any) -> npt.NDArray[np.float32]:
        """Return float32[batch, 1], what every variant must answer: the NumPy reference."""


def build_repository(
    suite: Suite,
    variants: Iterable[Variant],
    folder: Path,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Build:
    """Write the tables, the parameter server's configuration and every variant below `folder`.

    Raises ConfigError for a variant of another model than the suite's.
    """
    kind, variants = kind_of(suite), tuple(variants)
    for variant in variants:
        require_kind(variant, suite)
    build = kind.build(suite, folder, ModelRepository(folder / "repository"), variants)
    build.write_tables(progress)
    for variant in build.variants:
        progress(f"exporting {variant.name}")
        variant.export(build)
    return build


def require_kind(variant: Variant, suite: Suite) -> None:
    """Raise ConfigError where a variant serves another model than the suite's."""
    if variant.kind == suite.model:
        return
    own, served = kind_named(variant.kind), kind_of(suite)
    presets = [name for name in preset_names() if load_suite(name).model == own.name]
    raise ConfigError(
        f"variant {variant.name!r} serves {own.title}, and preset {suite.preset} describes "
        f"{served.title}",
        hint=f"pass --preset {' or '.join(presets)}, or a variant of {served.title}, such as "
        f"{served.reference}",
    )
