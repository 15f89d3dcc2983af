"""The requests for any model: made up from what it takes, or read as perf_analyzer reads them."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from hpsbench.errors import ConfigError
from hpsbench.load.client import Tensor
from hpsbench.servers.metadata import InputMetadata, ModelMetadata

DATA = ("random", "zero")
#: Made-up integers stay below it: they are mostly keys, and few tables are smaller.
INTEGERS_BELOW = 100
_BYTES_LENGTH = 16
#: Of one tensor: HTTP and gRPC carry 2 GiB at most.
_MAX_VALUES = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What to ask a model: made-up data, or a file's; see `make_inputs` and `read_input_data`."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    data: str = "random"
    input_data: Path | None = None
    seed: int = 0

    def of(self, model: ModelMetadata, batch_size: int) -> list[dict[str, Tensor]]:
        """Return the requests to send in turn, the same for the same model. Raises ConfigError."""
        if self.input_data is not None:
            return read_input_data(
                self.input_data, model, batch_size=batch_size, shapes=self.shapes
            )
        made_up = make_inputs(
            model, batch_size=batch_size, shapes=self.shapes, data=self.data, seed=self.seed
        )
        return [made_up]


def parse_shapes(options: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of `NAME:1,26` options by input; raises ConfigError for anything else."""
    shapes = {}
    for option in options:
        name, _, text = option.rpartition(":")
        try:
            shape = tuple(int(n) for n in text.split(","))
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1:
            raise ConfigError(
                f"--shape {option!r} is not NAME:N,N, whole numbers from 1",
                hint="for example --shape ids:1,26",
            )
        if math.prod(shape) > _MAX_VALUES:
            raise ConfigError(
                f"--shape {option!r} is more values than a request can carry",
                hint="give a smaller shape",
            )
        shapes[name] = shape
    return shapes


def make_inputs(
    model: ModelMetadata,
    *,
    batch_size: int,
    shapes: Mapping[str, tuple[int, ...]],
    data: str = "random",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return one request's tensors: `data` is "random" or "zero", optional inputs are left out.

    Random floats are in [0, 1), integers in [0, INTEGERS_BELOW). As perf_analyzer does, `shapes`
    leave the batch dimension out where the model batches; where it does not, a variable first
    dimension without a shape is the batch. Raises ConfigError for what stays unknown.
    """
    rng = np.random.default_rng(seed)
    given = _full_shapes(model, batch_size, shapes)
    return {
        taken.name: _made_up(taken, given[taken.name], data, rng)
        for taken in model.inputs
        if not taken.optional
    }


def read_input_data(
    path: Path,
    model: ModelMetadata,
    *,
    batch_size: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[dict[str, Tensor]]:
    """Return the requests in a JSON file of perf_analyzer's `--input-data`, to be sent in turn.

    Values are flat lists, `{"content": list, "shape": list}` or `{"b64": text}`. Where the model
    batches, a request takes the next `batch_size` entries, from the start again after the last.
    Raises ConfigError where the file cannot be read or does not fit the model.
    """
    entries = _entries(path)
    if not model.max_batch_size:
        _require_unbatched(path, batch_size)
        return [_request(path, n, entry, model, shapes, ()) for n, entry in enumerate(entries)]
    samples = [_request(path, n, entry, model, shapes, (1,)) for n, entry in enumerate(entries)]
    _check_batch_size(model, batch_size)
    return [
        {
            name: np.concatenate(
                [samples[(first + i) % len(samples)][name] for i in range(batch_size)]
            )
            for name in samples[0]
        }
        for first in range(0, max(1, len(samples) - batch_size + 1), batch_size)
    ]


def require_input_data(path: Path | None) -> None:
    """Raise ConfigError now for a file that `read_input_data` could not read; None is none."""
    if path is not None:
        _entries(path)


def _require_unbatched(path: Path, batch_size: int) -> None:
    if batch_size != 1:
        raise ConfigError(
            f"--batch-size {batch_size} with --input-data {path}: the model adds no batch "
            "dimension, so each entry of the file is one whole request",
            hint="put the batch into the file and give its shape: --shape NAME:32,26",
        )


def _check_batch_size(model: ModelMetadata, batch_size: int) -> None:
    if batch_size > model.max_batch_size:
        raise ConfigError(
            f"--batch-size {batch_size} is more than model {model.model} takes: its "
            f"max_batch_size is {model.max_batch_size}",
            hint="lower --batch-size, or raise max_batch_size in its config.pbtxt",
        )


def _full_shapes(
    model: ModelMetadata, batch_size: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    _check_names(model, shapes)
    if model.max_batch_size:
        _check_batch_size(model, batch_size)
    full = {}
    batched = bool(model.max_batch_size)
    for taken in model.inputs:
        shape = shapes.get(taken.name, taken.shape)
        if model.max_batch_size:
            shape = (batch_size, *shape)
        elif taken.name not in shapes and shape[:1] == (-1,):
            shape, batched = (batch_size, *shape[1:]), True
        if -1 in shape and not taken.optional:
            raise ConfigError(
                f"input {taken.name} of model {model.model} has the shape {list(taken.shape)}, "
                "which leaves a dimension open",
                hint=f"give it: --shape {taken.name}:"
                + ",".join(str(max(1, n)) for n in taken.shape),
            )
        full[taken.name] = shape
    if batch_size > 1 and not batched:
        raise ConfigError(
            f"--batch-size {batch_size}: model {model.model} has no open batch dimension",
            hint="leave it out, and give the whole shape: --shape NAME:32,26",
        )
    return full


def _check_names(model: ModelMetadata, shapes: Mapping[str, tuple[int, ...]]) -> None:
    names = [taken.name for taken in model.inputs]
    unknown = [name for name in shapes if name not in names]
    if unknown:
        raise ConfigError(
            f"--shape {unknown[0]}: model {model.model} has no such input",
            hint="its inputs: " + ", ".join(names),
        )


def _made_up(
    taken: InputMetadata, shape: tuple[int, ...], data: str, rng: np.random.Generator
) -> Tensor:
    dtype = _dtype(taken)
    if dtype is np.object_:
        text = b"" if data == "zero" else b"x" * _BYTES_LENGTH
        return np.full(shape, text, dtype)
    if data == "zero":
        return np.zeros(shape, dtype)
    if np.issubdtype(dtype, np.floating):
        return rng.random(shape).astype(dtype)
    below = 2 if dtype is np.bool_ else INTEGERS_BELOW
    return rng.integers(0, below, shape).astype(dtype)


def _dtype(taken: InputMetadata) -> Any:
    dtype = None if taken.datatype == "BF16" else triton_to_np_dtype(taken.datatype)
    if dtype is None:
        raise ConfigError(
            f"input {taken.name} has datatype {taken.datatype}, which NumPy does not know",
            hint="compare a model that takes FP32 or FP16",
        )
    return np.bool_ if dtype is bool else dtype


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        data = json.loads(path.read_text("utf-8"))["data"]
        if data and isinstance(data[0], list):
            # One list per stream; a duet has one.
            data = data[0]
        if not data or not all(isinstance(entry, dict) for entry in data):
            raise ValueError("no list of objects")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="check the path") from error
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no input data: {error}",
            hint='write {"data": [{"input": [1, 2]}]}, as perf_analyzer reads it',
        ) from error
    return data  # type: ignore[no-any-return]


def _request(
    path: Path,
    number: int,
    entry: Mapping[str, Any],
    model: ModelMetadata,
    shapes: Mapping[str, tuple[int, ...]],
    batch: tuple[int, ...],
) -> dict[str, Tensor]:
    _check_names(model, shapes)
    request = {}
    for taken in model.inputs:
        if taken.name not in entry:
            if taken.optional:
                continue
            raise ConfigError(
                f"{path}: entry {number} lacks the input {taken.name} of model {model.model}",
                hint="its inputs: " + ", ".join(t.name for t in model.inputs),
            )
        value = entry[taken.name]
        given = value.get("shape") if isinstance(value, dict) else None
        shape = tuple(given or shapes.get(taken.name) or _sample_shape(taken, batch))
        request[taken.name] = _tensor(path, number, taken, value, (*batch, *shape))
    return request


def _sample_shape(taken: InputMetadata, batch: tuple[int, ...]) -> tuple[int, ...]:
    # An entry is one sample, so an open first dimension that stands for the batch is 1.
    if not batch and taken.shape[:1] == (-1,):
        return (1, *taken.shape[1:])
    return taken.shape


def _tensor(
    path: Path, number: int, taken: InputMetadata, value: Any, shape: tuple[int, ...]
) -> Tensor:
    dtype = _dtype(taken)
    try:
        if isinstance(value, dict) and "b64" in value:
            content = base64.b64decode(value["b64"], validate=True)
            flat = (
                deserialize_bytes_tensor(content)
                if dtype is np.object_
                else np.frombuffer(content, dtype)
            )
        else:
            items = value["content"] if isinstance(value, dict) else value
            if dtype is np.object_:
                items = [item.encode() for item in items]
            flat = np.array(items, dtype).reshape(-1)
        if -1 in shape or flat.size != math.prod(shape):
            raise ValueError(f"{flat.size} values do not fill the shape {list(shape)}")
        return flat.reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"{path}: {taken.name} in entry {number}: {error}",
            hint=f"give {taken.datatype} values, and --shape {taken.name}:N,N for open dimensions",
        ) from error
