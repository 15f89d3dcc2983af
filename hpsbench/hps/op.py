"""The TensorFlow operation: loaded into TensorFlow once, with its initializer in place."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from hpsbench.errors import NativeBuildError

# Imported for what it does: it registers the initializer that the operation calls.
from hpsbench.hps import session  # noqa: F401
from hpsbench.hps.native import build


@functools.cache
def operations() -> Any:
    """Return the module with `hps_lookup`, `hps_multi_lookup` and `hps_concat_lookup`.

    Raises NativeBuildError where they cannot be compiled or loaded.
    """
    library = build.op_library()
    try:
        module = tf.load_op_library(str(library))
    except (tf.errors.OpError, OSError) as error:
        raise NativeBuildError(
            f"TensorFlow {tf.__version__} cannot load {library}: {error}",
            hint=f"delete {library.parent}, so that it is compiled again",
        ) from error
    tf.no_gradient("HpsLookup")
    tf.no_gradient("HpsMultiLookup")
    tf.no_gradient("HpsConcatLookup")
    return module
