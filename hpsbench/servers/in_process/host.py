"""What the in-process backend calls: loads models, and answers requests. Nothing here raises.

A model is a `TritonPythonModel` in a `model.py`, as for Triton's Python backend, whose interface it
finds under that backend's name; but its inputs lie where they were gathered, and are not copied.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpsbench.errors import BenchError
from hpsbench.models.cuda_capture import CAPTURING
from hpsbench.servers.in_process import triton_utils
from hpsbench.servers.in_process.triton_utils import GivenTensor, InferenceRequest, NamedTensor

_LIBC = ctypes.CDLL(None)
_M_TRIM_THRESHOLD = -1


class LoadedModel:
    """What the backend holds of a model; it holds nothing any more once that is unloaded."""

    def __init__(self, model: Any) -> None:
        self.model: Any = model


def load(name: str, version: str, folder: str, config: str) -> tuple[LoadedModel | None, str]:
    """Return the model of `folder/version/model.py`, initialized, and nothing; or None and why.

    `config` is the model's configuration in JSON.
    """
    with CAPTURING:
        model, problem = _load(name, version, folder, config)
    if problem:
        with _giving_back():
            pass
    return model, problem


def _load(name: str, version: str, folder: str, config: str) -> tuple[LoadedModel | None, str]:
    sys.modules.setdefault("triton_python_backend_utils", triton_utils)
    path = Path(folder) / version / "model.py"
    try:
        spec = importlib.util.spec_from_file_location(f"hpsbench_model_{name}_{version}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_name": name,
                "model_version": version,
                "model_repository": folder,
                "model_config": config,
            }
        )
    except BaseException as error:
        return None, _words(error)
    return LoadedModel(model), ""


def execute(
    loaded: LoadedModel,
    inputs: Sequence[GivenTensor],
    wanted: Sequence[str],
    its_response: int,
    take_output: int,
) -> tuple[str, tuple[NamedTensor, ...]]:
    """Return why the model did not answer one request, or nothing, and the `wanted` outputs.

    An input is name, Triton's data type, shape, address and bytes. No `wanted` ones means all. With
    `take_output`, a function of the backend, the model takes memory of `its_response` to write to.
    """
    try:
        request = InferenceRequest(inputs, its_response, take_output)
        (response,) = loaded.model.execute([request])
        if response.has_error():
            return response.error().message(), ()
        return "", tuple(
            tensor.described()
            for tensor in response.output_tensors()
            if not wanted or tensor.name() in wanted
        )
    except BaseException as error:
        return _words(error), ()


def unload(loaded: LoadedModel) -> None:
    """Let the model end what it holds; what it holds in circles goes now, not some day.

    Nothing may be asking it: Triton calls this when its last request is answered.
    """
    with CAPTURING, _giving_back():
        # Whoever called still holds `loaded`.
        model, loaded.model = loaded.model, None
        try:
            if hasattr(model, "finalize"):
                model.finalize()
        except BaseException as error:
            print(f"a model failed as it was unloaded: {_words(error)}", file=sys.stderr)
        del model


@contextmanager
def _giving_back() -> Iterator[None]:
    """Have memory that is freed meanwhile go to the system, which is kept for requests otherwise.

    `malloc_trim` alone leaves what lies at the end of the arenas of other threads.
    """
    kept = os.environ.get("MALLOC_TRIM_THRESHOLD_")
    if kept is not None:
        _LIBC.mallopt(_M_TRIM_THRESHOLD, 0)
    try:
        yield
    finally:
        gc.collect()
        _LIBC.malloc_trim(0)
        if kept is not None:
            _LIBC.mallopt(_M_TRIM_THRESHOLD, int(kept))


def _words(error: BaseException) -> str:
    """Return the error, with where it was raised unless its words are meant for users."""
    if isinstance(error, (BenchError, triton_utils.TritonModelException)):
        return str(error)
    return f"{error}\n\n{''.join(traceback.format_exception(error))}"
