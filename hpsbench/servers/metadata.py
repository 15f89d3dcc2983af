"""What a model on a running Triton takes, from its metadata and configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hpsbench.errors import ServerError
from hpsbench.servers import http


@dataclass(frozen=True, kw_only=True)
class InputMetadata:
    """One input: Triton's datatype (`FP32`, `INT64`, `BYTES`) and its shape, -1 where it varies.

    The shape is that of one sample where the model batches, else of the whole request.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """A model's inputs; `max_batch_size` is 0 where Triton adds no batch dimension."""

    model: str
    max_batch_size: int
    inputs: tuple[InputMetadata, ...]


def read_metadata(http_address: str, model: str) -> ModelMetadata:
    """Return what `model` on the Triton at `host:port` takes; raises ServerError if it has none."""
    return parse_metadata(_get(http_address, model, ""), _get(http_address, model, "/config"))


def parse_metadata(metadata: dict[str, Any], config: dict[str, Any]) -> ModelMetadata:
    """Return what Triton's JSON objects of a model, its metadata and configuration, say."""
    max_batch_size = int(config.get("max_batch_size", 0))
    optional = {i["name"] for i in config.get("input", []) if i.get("optional")}
    return ModelMetadata(
        model=metadata["name"],
        max_batch_size=max_batch_size,
        inputs=tuple(
            InputMetadata(
                name=i["name"],
                datatype=i["datatype"],
                # Triton puts the batch dimension first into a batching model's metadata.
                shape=tuple(int(n) for n in i["shape"])[1 if max_batch_size else 0 :],
                optional=i["name"] in optional,
            )
            for i in metadata["inputs"]
        ),
    )


def _get(address: str, model: str, what: str) -> dict[str, Any]:
    path = f"/v2/models/{quote(model, safe='')}{what}"
    status, body = http.ask(address, path)
    if status != 200:
        raise ServerError(
            f"triton at {address} does not describe model {model!r}: {http.reason(body)}",
            hint="load the model first, under exactly this name",
        )
    answer: dict[str, Any] = json.loads(body)
    return answer
