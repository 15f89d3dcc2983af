"""One client per connection: a request is encoded once, and its bytes are sent again and again.

What the client costs is part of every latency, so sending touches no tensor: a request is one
buffer, and an answer that begins like the last understood one needs no parsing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy.typing as npt
from tritonclient.utils import np_to_triton_dtype

from hpsbench.errors import ConfigError, RequestTimeout
from hpsbench.servers.endpoint import Endpoint

Tensor: TypeAlias = npt.NDArray[Any]
#: One request's tensors by input name, or several requests that are sent in turn.
Inputs: TypeAlias = Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]

EMPTY_ANSWER_HINT = (
    "the bundled Triton answers so under NumPy 2: install 'numpy<2'; hpsbench doctor tells"
)


ClientT = TypeVar("ClientT", bound="Client")


class Client(Protocol):
    """One connection to one model. Not thread-safe: give each thread its own.

    A client derives from it, for what is the same for all.
    """

    def send(self) -> None:
        """Send the next request and wait for its whole answer.

        Raises RequestError with the server's message on an error status, and when the answer is
        incomplete or empty, or the connection fails; the next call connects again.
        """

    def infer(self) -> dict[str, Tensor]:
        """Do as `send` does, and return the decoded outputs by name."""

    def another(self) -> Client:
        """Return a client with a connection of its own that sends the same encoded bytes.

        It begins with the first request. Raises RequestError where the connection is refused.
        """

    def close(self) -> None:
        """Close the connection; closing twice is allowed."""

    def __enter__(self: ClientT) -> ClientT:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(
    endpoint: Endpoint,
    inputs: Inputs,
    *,
    protocol: str = "http",
    outputs: Sequence[str] = (),
    timeout_s: float = 60.0,
) -> Client:
    """Return a client of `endpoint` that speaks `protocol`, "http" or "grpc".

    `outputs` names the tensors to ask for, all where it is empty. `timeout_s` bounds the wait for
    each piece of an answer. Raises ConfigError for another protocol, or where the endpoint serves
    no gRPC; RequestError where the connection is refused.
    """
    if protocol == "http":
        from hpsbench.load.http_client import HttpClient

        return HttpClient(endpoint, inputs, outputs=outputs, timeout_s=timeout_s)
    if protocol == "grpc":
        from hpsbench.load.grpc_client import GrpcClient

        return GrpcClient(endpoint, inputs, outputs=outputs, timeout_s=timeout_s)
    raise ConfigError(f"unknown protocol {protocol!r}", hint="use http or grpc")


def datatype_of(name: str, tensor: Tensor) -> str:
    """Return Triton's name for the input's dtype; raises ConfigError where it has none."""
    datatype: str | None = np_to_triton_dtype(tensor.dtype)
    if datatype is None:
        raise ConfigError(
            f"input {name} has dtype {tensor.dtype}, which Triton does not know",
            hint="pass integers, floats, booleans or bytes",
        )
    return datatype


def timed_out(where: str, timeout_s: float) -> RequestTimeout:
    """Return the error for a model that gives no answer in time."""
    return RequestTimeout(
        f"{where} did not answer within {timeout_s:g} s",
        hint="raise servers.request_timeout_s if the request is a large one",
    )


def requests_of(inputs: Inputs) -> tuple[Mapping[str, Tensor], ...]:
    """Return `inputs` as one or more requests; raises ConfigError where there is none."""
    requests = (inputs,) if isinstance(inputs, Mapping) else tuple(inputs)
    if not requests or not all(requests):
        raise ConfigError("a client needs at least one request with one input", hint="pass tensors")
    return requests
