"""Triton's HTTP protocol over one kept connection: the bytes, the socket, nothing between."""

from __future__ import annotations

import copy
import json
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

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

_END_OF_HEAD = b"\r\n\r\n"
_MAX_HEAD_BYTES = 64 * 1024
_FIRST_BUFFER_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What the first lines of an answer say; sizes are bytes, `size` that of the head itself."""

    size: int
    status: int
    content_length: int
    json_length: int | None
    closes: bool


class HttpClient(Client):
    """A `Client` over HTTP/1.1: encodes with tritonclient, then sends over its own socket."""

    def __init__(
        self,
        endpoint: Endpoint,
        inputs: Inputs,
        *,
        outputs: Sequence[str] = (),
        timeout_s: float = 60.0,
    ) -> None:
        self._address = endpoint.http
        self._where = f"model {endpoint.model} at http://{endpoint.http}"
        self._timeout_s = timeout_s
        self._requests = tuple(_encode(endpoint, r, outputs) for r in requests_of(inputs))
        self._open()

    def _open(self) -> None:
        self._next = 0
        self._storage = bytearray(_FIRST_BUFFER_BYTES)
        self._buffer = memoryview(self._storage)
        # The head and JSON of the last answer that was parsed and found whole, and its full size.
        self._known = b""
        self._known_size = 0
        self._socket: socket.socket | None = None
        self._connect()

    def another(self) -> HttpClient:
        """Return one more connection that sends the same bytes; see `Client.another`."""
        other = copy.copy(self)
        other._open()
        return other

    def send(self) -> None:
        """Send the next request and wait for its whole answer; see `Client.send`."""
        self._exchange()

    def infer(self) -> dict[str, Tensor]:
        """Send the next request and return its outputs by name; raises as `send` does."""
        size = self._exchange()
        head = self._parse_head(size)
        assert head is not None  # _exchange has parsed it
        body = bytes(self._buffer[head.size : size])
        try:
            result = InferenceServerClient.parse_response_body(body, header_length=head.json_length)
            names = [output["name"] for output in result.get_response()["outputs"]]
            return {name: result.as_numpy(name) for name in names}
        except (InferenceServerException, KeyError, ValueError) as error:
            raise self._error(f"gave outputs that cannot be decoded: {error}") from error

    def close(self) -> None:
        """Close the connection; closing twice is allowed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        host, _, port = self._address.rpartition(":")
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), self._timeout_s)
        except ValueError as error:
            raise ConfigError(
                f"{self._address!r} is no address", hint="write HOST:PORT without a scheme"
            ) from error
        except OSError as error:
            raise RequestError(
                f"{self._where} cannot be reached: {error.strerror or error}",
                hint="is the server running? its log says why it ended",
            ) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Python's own timeout costs a poll() before every send and receive; the kernel's does not.
        connection.settimeout(None)
        limit = struct.pack("ll", *divmod(max(1, round(self._timeout_s * 1e6)), 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._socket = connection
        return connection

    def _exchange(self) -> int:
        """Send, fill the buffer with one whole answer, and return its size in bytes."""
        connection = self._socket or self._connect()
        request = self._requests[self._next]
        self._next = (self._next + 1) % len(self._requests)
        try:
            connection.sendall(request)
            return self._receive(connection)
        except BlockingIOError as error:
            self.close()
            raise timed_out(self._where, self._timeout_s) from error
        except OSError as error:
            self.close()
            raise self._error(
                f"broke the connection: {error.strerror or error}",
                hint="read the server's log; the next request connects again",
            ) from error
        except BaseException:
            # Also an interrupt: bytes of this answer may be under way and must not meet the next.
            self.close()
            raise

    def _receive(self, connection: socket.socket) -> int:
        received = connection.recv_into(self._buffer)
        known = self._known
        if known and received >= len(known) and self._storage.startswith(known):
            return self._receive_rest(connection, received, self._known_size)
        return self._receive_unknown(connection, received)

    def _receive_rest(self, connection: socket.socket, received: int, size: int) -> int:
        if received > size:
            raise self._error(f"sent {received - size} bytes more than it announced")
        while received < size:
            count = connection.recv_into(self._buffer[received:size])
            if count == 0:
                raise self._error(f"closed the connection after {received} of {size} bytes")
            received += count
        return size

    def _receive_unknown(self, connection: socket.socket, received: int) -> int:
        if received == 0:
            raise self._error("closed the kept connection instead of answering")
        head = self._parse_head(received)
        while head is None:
            if received >= _MAX_HEAD_BYTES:
                raise self._error(f"sent no end of HTTP headers within {received} bytes")
            count = connection.recv_into(self._buffer[received:])
            if count == 0:
                raise self._error(f"closed the connection after {received} bytes of headers")
            received += count
            head = self._parse_head(received)
        size = head.size + head.content_length
        if size > len(self._buffer):
            larger = bytearray(size)
            larger[:received] = self._buffer[:received]
            self._storage, self._buffer = larger, memoryview(larger)
        self._receive_rest(connection, received, size)
        if head.closes:
            self.close()
        if head.status != 200:
            raise self._refusal(head, bytes(self._buffer[head.size : size]))
        understood = head.size + self._check_outputs(head)
        if not head.closes:
            self._known, self._known_size = bytes(self._buffer[:understood]), size
        return size

    def _parse_head(self, received: int) -> _Head | None:
        """Return the head at the buffer's start, None where its end has not come yet."""
        start = bytes(self._buffer[: min(received, _MAX_HEAD_BYTES)])
        end = start.find(_END_OF_HEAD)
        if end < 0:
            return None
        status_line, *lines = start[:end].decode("latin-1").split("\r\n")
        version, _, rest = status_line.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise self._error(f"does not speak HTTP/1: it began with {status_line[:60]!r}")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        for name in ("transfer-encoding", "content-encoding"):
            if headers.get(name, "identity").lower() != "identity":
                raise self._error(
                    f"answered with {name} {headers[name]!r}, which this client does not read",
                    hint="address Triton itself, not a proxy that rewrites its answers",
                )
        length = headers.get("content-length", "")
        json_length = headers.get("inference-header-content-length")
        if not length.isdigit() or not (json_length is None or json_length.isdigit()):
            raise self._error(f"gave no usable length: Content-Length is {length!r}")
        return _Head(
            size=end + len(_END_OF_HEAD),
            status=int(rest[:3]),
            content_length=int(length),
            json_length=None if json_length is None else int(json_length),
            closes=headers.get("connection", "").lower() == "close" or version == "HTTP/1.0",
        )

    def _check_outputs(self, head: _Head) -> int:
        """Return the JSON's size in bytes; raises RequestError unless all outputs are there."""
        json_length = head.content_length if head.json_length is None else head.json_length
        try:
            answer = json.loads(bytes(self._buffer[head.size : head.size + json_length]))
            outputs = answer["outputs"]
            sizes = [o.get("parameters", {}).get("binary_data_size", 0) for o in outputs]
            empty = [
                o["name"]
                for o, n in zip(outputs, sizes, strict=True)
                if not n and not o.get("data") and 0 not in o["shape"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise self._error(f"gave an answer that is no inference response: {error!r}") from error
        if json_length + sum(sizes) != head.content_length:
            sent = head.content_length - json_length
            raise self._error(f"announced outputs of {sum(sizes)} bytes and sent {sent}")
        if empty or not outputs:
            raise self._error(
                f"gave an empty answer for {', '.join(empty) or 'every output'}",
                hint=EMPTY_ANSWER_HINT,
            )
        return json_length

    def _refusal(self, head: _Head, body: bytes) -> RequestError:
        try:
            message = str(json.loads(body)["error"])
        except (ValueError, KeyError, TypeError):
            message = body[:200].decode("utf-8", "replace") or "no message"
        return self._error(f"answered with status {head.status}: {message}")

    def _error(
        self, what: str, *, hint: str = "read the server's log for this request"
    ) -> RequestError:
        return RequestError(f"{self._where} {what}", hint=hint)


def _encode(endpoint: Endpoint, tensors: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    inputs = []
    for name, tensor in tensors.items():
        datatype = datatype_of(name, tensor)
        inputs.append(InferInput(name, list(tensor.shape), datatype).set_data_from_numpy(tensor))
    wanted = [InferRequestedOutput(name) for name in outputs]
    body, json_length = InferenceServerClient.generate_request_body(inputs, outputs=wanted or None)
    head = (
        f"POST /v2/models/{quote(endpoint.model, safe='')}/infer HTTP/1.1\r\n"
        f"Host: {endpoint.http}\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {json_length}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return b"".join((head.encode("ascii"), body))
