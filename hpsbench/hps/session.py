"""What is initialised in this process: once, from one configuration.

`Init` does it when called; an operation that runs first does it through the same door.
"""

from __future__ import annotations

import atexit
import hashlib
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpsbench.errors import HpsError
from hpsbench.hps.configuration import (
    Configuration,
    configuration_text,
    parse_configuration,
)
from hpsbench.hps.lookup import ModelTables
from hpsbench.hps.native import bindings


@dataclass(frozen=True, kw_only=True)
class _Session:
    path: str
    digest: str
    configuration: Configuration
    models: dict[str, ModelTables]


_lock = threading.RLock()
_session: _Session | None = None


def Init(**kwargs: Any) -> str:
    """Load all models of `ps_config_file` for this process, and return "OK".

    Keywords: `ps_config_file`, the path of the JSON file; `global_batch_size`, accepted and not
    needed. A second call with the same file content returns "OK" and does nothing. Raises HpsError
    for other keywords, for a file of other content than before, and TableError or HpsError for
    whatever is wrong in the file or its tables; then nothing is initialised, and another call may.
    """
    unknown = sorted(set(kwargs) - {"ps_config_file", "global_batch_size"})
    if unknown:
        raise HpsError(
            f"Init has no argument {unknown[0]!r}", hint="pass ps_config_file, global_batch_size"
        )
    path = kwargs.get("ps_config_file")
    if not isinstance(path, (str, Path)) or not str(path):
        raise HpsError(f"Init: ps_config_file is {path!r}", hint="pass the path of the JSON file")
    _initialise(str(path))
    return "OK"


def _initialise(path: str) -> None:
    global _session
    text = configuration_text(path)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with _lock:
        if _session is not None:
            if _session.digest != digest:
                raise HpsError(
                    f"this process is initialised from {_session.path}, and {path} says otherwise",
                    hint="use one configuration per process; it can name several models",
                )
            return
        configuration = parse_configuration(text, path)
        reason = _why_without_gpus()
        models = {
            m.model: ModelTables(configuration, m, without_gpus=reason)
            for m in configuration.models
        }
        for name, model in models.items():
            model.register(name)
        _session = _Session(path=path, digest=digest, configuration=configuration, models=models)


def _why_without_gpus() -> str | None:
    """Return why lookups cannot come from a GPU here; None where TensorFlow may use one."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and not tensorflow.test.is_built_with_cuda():
        return "this TensorFlow uses no GPU"
    return None


def initialise_for_operation(model_name: str, ps_config_file: str, global_batch_size: int) -> None:
    """See to it that `model_name` is registered; called by an operation when it first runs.

    Raises what `Init` raises, and HpsError where no configuration is known or it lacks the model.
    """
    del global_batch_size
    with _lock:
        # A model that moved to another machine carries the path of its first one; Init with the
        # file of this machine comes first then.
        if ps_config_file and (_session is None or Path(ps_config_file).exists()):
            _initialise(ps_config_file)
        if _session is None:
            raise HpsError(
                "the parameter server is not initialised",
                hint="call hps.Init(ps_config_file=...), or give the layer a ps_config_file",
            )
        _session.configuration.model(model_name)


def statistics() -> dict[str, dict[str, dict[str, Any]]]:
    """Return what each table of each model is and how often it was asked, by name.

    See `hpsbench.hps.native.bindings.TableFacts` for the fields.
    """
    with _lock:
        return {} if _session is None else {n: m.statistics() for n, m in _session.models.items()}


def reset() -> None:
    """Forget the session, so that another `Init` may come: for tests and notebooks.

    Operations that run later are initialised anew.
    """
    global _session
    with _lock:
        _session = None
        bindings.clear_registry()


atexit.register(bindings.set_initializer(initialise_for_operation))
