"""Find the addresses of a Triton that somebody else runs, from its URL."""

from __future__ import annotations

import json
import socket
import urllib.parse
from dataclasses import dataclass

from hpsbench.errors import ConfigError, ServerError
from hpsbench.servers import http

DEFAULT_HTTP_PORT = 8000
# The start of an HTTP/2 connection: the client's preface and an empty SETTINGS frame.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HTTP2_SETTINGS_FRAME = 4


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where a Triton answers, as `host:port`; None where that service was not found."""

    http: str
    grpc: str | None
    metrics: str | None


def attach(url: str) -> Addresses:
    """Return the addresses of the Triton at `http://HOST:PORT`.

    gRPC is looked for at the next port and metrics at the one after, as in Triton's defaults (8000,
    8001, 8002). Raises ConfigError for another kind of URL and ServerError without an answer.
    """
    host, port = parse_url(url)
    address = f"{host}:{port}"
    try:
        status, body = http.get(address, "/v2")
    except http.CONNECTION_ERRORS as error:
        raise http.unreachable(url, error) from error
    if status != 200 or not _is_triton(body):
        http.close(address)
        raise ServerError(
            f"what answers at {url} is no triton (HTTP status {status})",
            hint="give the address of Triton's HTTP service, by default port 8000",
        )
    return Addresses(
        http=address,
        grpc=f"{host}:{port + 1}" if _speaks_http2(host, port + 1) else None,
        metrics=f"{host}:{port + 2}" if _has_metrics(f"{host}:{port + 2}") else None,
    )


def parse_url(url: str) -> tuple[str, int]:
    """Return host and port of `http://HOST[:PORT]`. Raises ConfigError for anything else."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or DEFAULT_HTTP_PORT
    except ValueError:
        parts, port = urllib.parse.urlsplit(""), 0
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(
            f"{url} is no address of Triton's HTTP service: http://HOST:PORT",
            hint="for example http://127.0.0.1:8000",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host, port


def _is_triton(body: bytes) -> bool:
    try:
        return "extensions" in json.loads(body)
    except (ValueError, TypeError):
        return False


def _speaks_http2(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=1.0) as connection:
            connection.sendall(_HTTP2_PREFACE)
            answer = connection.recv(9)
    except OSError:
        return False
    return len(answer) > 3 and answer[3] == _HTTP2_SETTINGS_FRAME


def _has_metrics(address: str) -> bool:
    try:
        status, body = http.get(address, "/metrics", timeout_s=1.0)
    except http.CONNECTION_ERRORS:
        http.close(address)
        return False
    return status == 200 and b"nv_" in body
