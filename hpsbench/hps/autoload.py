"""Loads the operation along with TensorFlow, whichever is imported first."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from hpsbench.errors import NativeBuildError

_LOG = logging.getLogger("hpsbench.hps")


def load_with_tensorflow(load_op: Callable[[], None]) -> None:
    """Call `load_op` now if TensorFlow is imported, else as soon as it has been.

    A library that cannot be built is a warning here, since the importing program may not need it.
    """

    def load() -> None:
        try:
            load_op()
        except NativeBuildError as error:
            _LOG.warning("lookups will not work in TensorFlow: %s", error)

    if "tensorflow" in sys.modules:
        load()
    else:
        sys.meta_path.insert(0, _TensorFlowWatcher(load))


class _TensorFlowWatcher(MetaPathFinder):
    """Finds nothing itself: has `load` called when `tensorflow` has been imported."""

    def __init__(self, load: Callable[[], None]) -> None:
        self._load = load

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader
        execute = loader.exec_module

        def execute_and_load(module: ModuleType) -> None:
            execute(module)
            self._load()

        loader.exec_module = execute_and_load  # type: ignore[method-assign]
        return spec
