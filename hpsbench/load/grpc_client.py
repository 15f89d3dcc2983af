"""Triton's gRPC protocol with a request that is serialized once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import serialize_byte_tensor

from hpsbench.errors import ConfigError, RequestError
from hpsbench.load.client import (
    EMPTY_ANSWER_HINT,
    Client,
    Inputs,
    Tensor,
    datatype_of,
    requests_of,
    timed_out,
)
from hpsbench.servers.endpoint import Endpoint

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_UNLIMITED_BYTES = 2**31 - 1


class GrpcClient(Client):
    """A `Client` over gRPC; it sends what tritonclient.grpc would, serialized beforehand."""

    def __init__(
        self,
        endpoint: Endpoint,
        inputs: Inputs,
        *,
        outputs: Sequence[str] = (),
        timeout_s: float = 60.0,
    ) -> None:
        if endpoint.grpc is None:
            raise ConfigError(
                f"model {endpoint.model} at {endpoint.http} is not served over gRPC",
                hint="set load.protocol to http, or start the server with gRPC",
            )
        self._where = f"model {endpoint.model} at grpc://{endpoint.grpc}"
        self._timeout_s = timeout_s
        self._requests = tuple(_encode(endpoint, r, outputs) for r in requests_of(inputs))
        self._address = endpoint.grpc
        self._open()

    def _open(self) -> None:
        self._next = 0
        self._channel = grpc.insecure_channel(
            self._address,
            options=[
                # Or channels to one address share one connection.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_send_message_length", _UNLIMITED_BYTES),
                ("grpc.max_receive_message_length", _UNLIMITED_BYTES),
            ],
        )
        self._call = self._channel.unary_unary(
            _METHOD,
            request_serializer=None,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )

    def another(self) -> GrpcClient:
        """Return one more connection that sends the same bytes; see `Client.another`."""
        other = copy.copy(self)
        other._open()
        return other

    def send(self) -> None:
        """Send the next request and wait for its whole answer; see `Client.send`."""
        self._exchange()

    def infer(self) -> dict[str, Tensor]:
        """Send the next request and return its outputs by name; raises as `send` does."""
        response = self._exchange()
        result = InferResult(response)
        return {output.name: result.as_numpy(output.name) for output in response.outputs}

    def close(self) -> None:
        """Close the channel; closing twice is allowed."""
        self._channel.close()

    def _exchange(self) -> service_pb2.ModelInferResponse:
        request = self._requests[self._next]
        self._next = (self._next + 1) % len(self._requests)
        try:
            response = self._call(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise timed_out(self._where, self._timeout_s) from error
            raise RequestError(
                f"{self._where} answered with status {error.code().name}: {error.details()}",
                hint="read the server's log for this request",
            ) from error
        contents = response.raw_output_contents
        if not response.outputs or len(contents) != len(response.outputs):
            raise RequestError(
                f"{self._where} announced {len(response.outputs)} outputs and sent {len(contents)}",
                hint="read the server's log for this request",
            )
        for output, content in zip(response.outputs, contents, strict=True):
            if not content and 0 not in output.shape:
                raise RequestError(
                    f"{self._where} gave an empty answer for {output.name}",
                    hint=EMPTY_ANSWER_HINT,
                )
        return response


def _encode(endpoint: Endpoint, tensors: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=endpoint.model)
    for name, tensor in tensors.items():
        datatype = datatype_of(name, tensor)
        request.inputs.add(name=name, datatype=datatype, shape=tensor.shape)
        content = serialize_byte_tensor(tensor).item() if datatype == "BYTES" else tensor.tobytes()
        request.raw_input_contents.append(content)
    for name in outputs:
        request.outputs.add(name=name)
    encoded: bytes = request.SerializeToString()
    return encoded
