"""The Hierarchical Parameter Server: embedding tables beside the model, asked by key.

A drop-in for `hierarchical_parameter_server`:

    import hpsbench.hps as hps
    hps.Init(ps_config_file="ps.json", global_batch_size=1024)
    rows = hps.LookupLayer("dlrm", 0, 128, tf.float32)(ids)

Importing it does not import TensorFlow: `hpsbench.hps.lookup` serves without. But where TensorFlow
is there, or as soon as it comes, the operation is loaded into it, so that a SavedModel that
contains a lookup loads after `import hpsbench.hps`, whichever of the two is imported first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpsbench.hps import autoload

if TYPE_CHECKING:
    from hpsbench.hps.configuration import read_configuration, write_configuration
    from hpsbench.hps.fusion import FusedModel, export_fused, fuse
    from hpsbench.hps.layers import LookupLayer, MultiLookupLayer, SparseLookupLayer
    from hpsbench.hps.session import (
        Init,
        add_models,
        refresh,
        remove_model,
        statistics,
        update,
    )

__all__ = [
    "FusedModel",
    "Init",
    "LookupLayer",
    "MultiLookupLayer",
    "SparseLookupLayer",
    "add_models",
    "export_fused",
    "fuse",
    "load_op",
    "read_configuration",
    "refresh",
    "remove_model",
    "statistics",
    "update",
    "write_configuration",
]

_HOMES = {
    "FusedModel": "fusion",
    "Init": "session",
    "LookupLayer": "layers",
    "MultiLookupLayer": "layers",
    "SparseLookupLayer": "layers",
    "add_models": "session",
    "export_fused": "fusion",
    "fuse": "fusion",
    "read_configuration": "configuration",
    "refresh": "session",
    "remove_model": "session",
    "statistics": "session",
    "update": "session",
    "write_configuration": "configuration",
}


def load_op() -> None:
    """Load the operation into TensorFlow now, and TensorFlow with it; again does nothing.

    Raises NativeBuildError where it cannot be compiled or loaded.
    """
    # First, since it has this called again as soon as it is imported.
    import tensorflow  # noqa: F401

    from hpsbench.hps.op import operations

    operations()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


autoload.load_with_tensorflow(load_op)
