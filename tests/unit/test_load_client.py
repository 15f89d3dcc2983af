"""The HTTP client against a server that says exactly what a test scripts, over a real socket."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsbench.errors import ConfigError, RequestError, RequestTimeout
from hpsbench.load.client import connect
from hpsbench.load.http_client import HttpClient
from hpsbench.servers.endpoint import Endpoint

INPUTS = {
    "categorical_features": np.arange(52, dtype=np.int32).reshape(2, 26),
    "numerical_features": np.ones((2, 13), np.float32),
}
OUTPUT = np.array([[0.25], [0.75]], np.float32)

#: How one connection answers: each item is one request's answer, in pieces; then it closes.
Script = Sequence[Sequence[bytes]]


class ScriptedServer:
    """Plays one script per connection, and keeps the requests it received."""

    def __init__(self, scripts: Sequence[Script], hold_open: bool) -> None:
        self.requests: list[bytes] = []
        self._scripts, self._hold_open = scripts, hold_open
        self._done = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=10)
        self._listener.close()

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for pieces in script:
                    request = read_request(connection)
                    if not request:
                        break
                    self.requests.append(request)
                    for piece in pieces:
                        connection.sendall(piece)
                        if len(pieces) > 1:
                            time.sleep(0.001)
                if self._hold_open:
                    self._done.wait(10)


def read_request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            return b""
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.findall(rb"\r\nContent-Length: (\d+)", head)[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def scripted(*scripts: Script, hold_open: bool = False) -> Iterator[ScriptedServer]:
    server = ScriptedServer(scripts, hold_open)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def client_of(*scripts: Script, hold_open: bool = False) -> Iterator[HttpClient]:
    with (
        scripted(*scripts, hold_open=hold_open) as server,
        HttpClient(endpoint(server.address), INPUTS, timeout_s=5) as client,
    ):
        yield client


def endpoint(address: str) -> Endpoint:
    return Endpoint(http=address, grpc=None, metrics=None, model="tiny", timed_models=("tiny",))


def answer(
    output: np.ndarray = OUTPUT,
    *,
    status: str = "200 OK",
    headers: str = "",
    announced: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """Return what Triton answers; `announced` replaces the output's true size in its JSON."""
    size = output.nbytes if announced is None else announced
    described = {
        "name": "output",
        "datatype": "FP32",
        "shape": list(output.shape),
        "parameters": {"binary_data_size": size},
    }
    text = json.dumps({"model_name": "tiny", "outputs": [described]}).encode()
    body = text + output.tobytes()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + extra


def refusal(status: str, message: str) -> bytes:
    body = json.dumps({"error": message}).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def test_outputs_are_decoded_and_every_request_has_the_same_bytes() -> None:
    with scripted([[answer()]] * 3) as server:
        with connect(endpoint(server.address), INPUTS) as client:
            client.send()
            client.send()
            outputs = client.infer()
        np.testing.assert_array_equal(outputs["output"], OUTPUT)
        assert len(server.requests) == 3
        assert len(set(server.requests)) == 1


def test_a_request_is_what_tritons_protocol_asks_for() -> None:
    with scripted([[answer()]]) as server, connect(endpoint(server.address), INPUTS) as client:
        client.send()
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/tiny/infer HTTP/1.1\r\n")
    json_length = int(re.findall(rb"Inference-Header-Content-Length: (\d+)", head)[0])
    described = json.loads(body[:json_length])
    assert [i["name"] for i in described["inputs"]] == list(INPUTS)
    assert body[json_length:] == b"".join(tensor.tobytes() for tensor in INPUTS.values())


def test_several_requests_are_sent_in_turn() -> None:
    pool = [{"keys": np.full((1,), value, np.int64)} for value in (3, 5)]
    with scripted([[answer()]] * 3) as server, connect(endpoint(server.address), pool) as client:
        for _ in range(3):
            client.send()
        assert [int.from_bytes(r[-8:], "little") for r in server.requests] == [3, 5, 3]


def test_another_connection_sends_the_same_bytes_from_the_first_request_on() -> None:
    pool = [{"keys": np.full((1,), value, np.int64)} for value in (3, 5)]
    with scripted([[answer()]], [[answer()]] * 2) as server:
        with connect(endpoint(server.address), pool) as client:
            client.send()
        with client.another() as other:
            other.send()
            other.send()
        first, *others = server.requests
        assert others[0] == first
        assert [int.from_bytes(r[-8:], "little") for r in server.requests] == [3, 3, 5]


@pytest.mark.parametrize("piece", [1, 7, 60, 130])
def test_an_answer_may_come_in_pieces_of_any_size(piece: int) -> None:
    with client_of([in_pieces(answer(), piece)] * 2) as client:
        client.send()
        np.testing.assert_array_equal(client.infer()["output"], OUTPUT)


def test_answers_larger_than_the_buffer_and_of_changing_size_are_read_whole() -> None:
    large = np.arange(300_000, dtype=np.float32).reshape(-1, 1)
    with client_of([[answer()], [answer(large)], [answer()], [answer(large)]]) as client:
        client.send()
        client.send()
        np.testing.assert_array_equal(client.infer()["output"], OUTPUT)
        np.testing.assert_array_equal(client.infer()["output"], large)


@given(shape=st.tuples(st.integers(1, 50), st.integers(1, 50)), seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_any_output_comes_back_bit_for_bit(shape: tuple[int, int], seed: int) -> None:
    output = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    with client_of([[answer(output)], [answer(-output)]]) as client:
        np.testing.assert_array_equal(client.infer()["output"], output)
        np.testing.assert_array_equal(client.infer()["output"], -output)


BAD_ANSWERS = {
    "error status": (
        refusal("400 Bad Request", "batch-size must be <= 64"),
        r"answered with status 400: batch-size must be <= 64$",
    ),
    "error without a message": (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy",
        r"answered with status 503: busy$",
    ),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        r"answered with transfer-encoding 'chunked', which this client does not read",
    ),
    "compressed": (
        answer(headers="Content-Encoding: gzip\r\n"),
        r"answered with content-encoding 'gzip', which this client does not read",
    ),
    "no length": (b"HTTP/1.1 200 OK\r\n\r\n", r"gave no usable length: Content-Length is ''"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", r"does not speak HTTP/1: it began with 'SSH-2"),
    "no JSON": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        r"gave an answer that is no inference response",
    ),
    "announced more than sent": (
        answer(announced=4000),
        r"announced outputs of 4000 bytes and sent 8$",
    ),
    "sent more than announced": (answer(extra=b"tail"), r"sent 4 bytes more than it announced$"),
    "empty output": (
        answer(np.empty((0,), np.float32)).replace(b'"shape": [0]', b'"shape": [2]'),
        r"gave an empty answer for output$",
    ),
    "headers without end": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 12_000, r"no end of HTTP head"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_answer_is_an_error_that_says_what_is_wrong(name: str) -> None:
    data, problem = BAD_ANSWERS[name]
    with client_of([[data]], hold_open=True) as client, pytest.raises(RequestError) as caught:
        client.send()
    assert re.search(r"^model tiny at http://127.0.0.1:\d+ ", caught.value.problem)
    assert re.search(problem, caught.value.problem)
    assert caught.value.hint


def test_an_empty_answer_points_at_numpy() -> None:
    data, _ = BAD_ANSWERS["empty output"]
    with client_of([[data]]) as client, pytest.raises(RequestError) as caught:
        client.send()
    assert "NumPy 2" in caught.value.hint


CLOSED = {
    "instead of an answer": ([], r"closed the kept connection instead of answering|broke the conn"),
    "within the headers": ([b"HTTP/1.1 200"], r"closed the connection after 12 bytes of headers"),
    "within the body": ([answer()[:-3]], r"closed the connection after \d+ of \d+ bytes"),
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("kept", [False, True], ids=["first request", "kept connection"])
def test_a_closed_connection_is_an_error_and_the_next_request_connects_again(
    name: str, kept: bool
) -> None:
    pieces, problem = CLOSED[name]
    first: list[list[bytes]] = [[answer()]] * kept + [pieces]
    with client_of(first, [[answer()]]) as client:
        if kept:
            client.send()
        with pytest.raises(RequestError, match=problem):
            client.send()
        np.testing.assert_array_equal(client.infer()["output"], OUTPUT)


def test_after_an_error_status_the_next_request_is_answered() -> None:
    refused = refusal("500 Internal Server Error", "boom")
    with client_of([[refused]], [[answer()]]) as client:
        with pytest.raises(RequestError, match="status 500: boom"):
            client.send()
        client.send()


def test_a_server_that_closes_after_each_answer_is_asked_over_new_connections() -> None:
    closing = answer(headers="Connection: close\r\n")
    with client_of([[closing]], [[closing]], [[closing]]) as client:
        client.send()
        client.send()
        np.testing.assert_array_equal(client.infer()["output"], OUTPUT)


def test_a_server_that_does_not_answer_is_an_error_within_the_timeout() -> None:
    with scripted([[b""]], hold_open=True) as server:
        with HttpClient(endpoint(server.address), INPUTS, timeout_s=0.1) as client:
            begun = time.monotonic()
            with pytest.raises(RequestTimeout, match=r"did not answer within 0\.1 s"):
                client.send()
        assert time.monotonic() - begun < 5


def test_an_unreachable_server_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(RequestError, match=f"http://{address} cannot be reached: Connection refus"):
        connect(endpoint(address), INPUTS)


REFUSED_SETTINGS: dict[str, tuple[Callable[[], object], str]] = {
    "protocol": (
        lambda: connect(endpoint("127.0.0.1:1"), INPUTS, protocol="quic"),
        "unknown protocol 'quic'",
    ),
    "no gRPC": (
        lambda: connect(endpoint("127.0.0.1:1"), INPUTS, protocol="grpc"),
        "is not served over gRPC",
    ),
    "no request": (lambda: connect(endpoint("127.0.0.1:1"), []), "at least one request"),
    "address": (lambda: connect(endpoint("localhost"), INPUTS), "'localhost' is no address"),
    "dtype": (
        lambda: connect(endpoint("127.0.0.1:1"), {"x": np.zeros(1, np.complex64)}),
        "input x has dtype complex64",
    ),
}


@pytest.mark.parametrize("name", REFUSED_SETTINGS)
def test_settings_that_cannot_work_are_refused(name: str) -> None:
    attempt, problem = REFUSED_SETTINGS[name]
    with pytest.raises(ConfigError, match=problem):
        attempt()
