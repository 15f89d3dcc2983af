"""What is initialised in this process: once, from one configuration.

`Init` does it when called; an operation that runs first does it through the same door.
"""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

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
    """What is initialised: by `Init` from `path`, and by `add_models` from further files."""

    path: str
    digests: dict[str, tuple[str, ...]]
    """By the digest of each file, its models."""
    supportlonglong: bool
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
            if digest not in _session.digests:
                raise HpsError(
                    f"this process is initialised from {_session.path}, and {path} says otherwise",
                    hint="use one configuration per process; it can name several models, and "
                    "hps.add_models adds those of another",
                )
            return
        configuration = parse_configuration(text, path)
        _session = _Session(
            path=path,
            digests={digest: tuple(m.model for m in configuration.models)},
            supportlonglong=configuration.supportlonglong,
            models=_load(configuration),
        )


def _load(configuration: Configuration) -> dict[str, ModelTables]:
    """Return the models of a configuration, loaded and registered: all of them or none."""
    reason = _why_without_gpus()
    models: dict[str, ModelTables] = {}
    try:
        for model in configuration.models:
            models[model.model] = ModelTables(configuration, model, without_gpus=reason)
    except BaseException:
        while models:  # no traceback is to hold what was loaded
            models.popitem()[1].close()
        raise
    for name, loaded in models.items():
        loaded.register(name)
    return models


def add_models(ps_config_file: Path | str) -> str:
    """Load the models of a further file beside those that there are, and return "OK".

    Lookups of the others go on meanwhile. Again for the same content it does nothing, and before
    `Init` it does what `Init` does. Raises HpsError for a model whose name is taken, or another
    `supportlonglong`, and what `Init` raises; then no model is added.
    """
    global _session
    path = str(ps_config_file)
    text = configuration_text(path)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with _lock:
        if _session is None or digest in _session.digests:
            _initialise(path)
            return "OK"
        configuration = parse_configuration(text, path)
        taken = [m.model for m in configuration.models if m.model in _session.models]
        if taken:
            raise HpsError(
                f"{path} names the model {taken[0]}, which is there already",
                hint="remove it with hps.remove_model first, or give the new one another name",
            )
        if configuration.supportlonglong != _session.supportlonglong:
            raise HpsError(
                f"{path} has another supportlonglong than {_session.path}",
                hint="all models of a process have one key type",
            )
        added = _load(configuration)
        _session = dataclasses.replace(
            _session,
            digests={**_session.digests, digest: tuple(added)},
            models={**_session.models, **added},
        )
    return "OK"


def remove_model(model_name: str) -> None:
    """Let a model go: its memory, its GPU caches and its databases.

    Lookups under way finish; operations that ask for it later fail. Raises HpsError where there is
    none of that name.
    """
    global _session
    with _lock:
        model = _model(model_name)
        assert _session is not None
        first, *added = _session.digests.items()
        _session = dataclasses.replace(
            _session,
            # The file that it was added by may be added again.
            digests=dict([first, *(file for file in added if model_name not in file[1])]),
            models={n: m for n, m in _session.models.items() if n != model_name},
        )
        bindings.remove_from_registry(model_name)
        model.close()


def update(model_name: str, table: int | str, keys: npt.ArrayLike, rows: npt.ArrayLike) -> None:
    """Set rows, float32[n, dim], of int64[n] `keys`, known or new, of a table by id or by name.

    They go to every tier that takes updates of the table, and to the GPU caches. Lookups that start
    when this has returned, in any thread, get the new rows, and none ever gets a part of a row. Of
    a repeated key the last row counts. A database that does not answer gets the rows when it has
    recovered. Raises HpsError for an unknown model or table, other shapes or types, or where
    `update_filters` let no tier take them.
    """
    _model(model_name).update(table, keys, rows)


def refresh(model_name: str | None = None) -> None:
    """Rewrite what is cached, in host memory and on GPUs, from what lies below; all models, or one.

    For rows that another process changed: in Redis, or in files. Lookups go on meanwhile. Raises
    HpsError for an unknown model.
    """
    if model_name is not None:
        _model(model_name).refresh()
        return
    with _lock:
        models = [] if _session is None else list(_session.models.values())
    for model in models:
        model.refresh()


def _model(name: str) -> ModelTables:
    with _lock:
        models = {} if _session is None else _session.models
        if name not in models:
            raise HpsError(
                f"the configuration has no model {name!r}",
                hint="it has " + ", ".join(models) if models else "call hps.Init first",
            )
        return models[name]


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
        _model(model_name)


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
        session, _session = _session, None
        bindings.clear_registry()
        for model in session.models.values() if session is not None else ():
            model.close()


atexit.register(bindings.set_initializer(initialise_for_operation))
