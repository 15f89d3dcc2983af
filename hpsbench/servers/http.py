"""Triton's HTTP API over one kept connection per server, for control and statistics."""

from __future__ import annotations

import atexit
import http.client
import json
import threading
from dataclasses import dataclass, field

from hpsbench.errors import ServerError

#: What a connection raises when the server is gone, or closed it while it was idle.
CONNECTION_ERRORS = (OSError, http.client.HTTPException)


@dataclass
class _Kept:
    connection: http.client.HTTPConnection
    lock: threading.Lock = field(default_factory=threading.Lock)


_kept: dict[str, _Kept] = {}
_kept_lock = threading.Lock()


def get(address: str, path: str, *, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Return status and body of a GET at `host:port`, over the kept connection.

    Raises OSError or http.client.HTTPException when no answer comes.
    """
    with _kept_lock:
        kept = _kept.setdefault(address, _Kept(http.client.HTTPConnection(address)))
    with kept.lock:
        connection = kept.connection
        connection.timeout = timeout_s
        fresh = connection.sock is None
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        try:
            return _exchange(connection, "GET", path, None)
        except CONNECTION_ERRORS as error:
            connection.close()
            if fresh or isinstance(error, TimeoutError):
                raise
        # The server may have closed a connection that was idle for long.
        try:
            return _exchange(connection, "GET", path, None)
        except CONNECTION_ERRORS:
            connection.close()
            raise


def ask(address: str, path: str) -> tuple[int, bytes]:
    """Return what `get` does; raises ServerError when no answer comes."""
    try:
        return get(address, path)
    except CONNECTION_ERRORS as error:
        raise unreachable(address, error) from error


def post(address: str, path: str, body: bytes = b"{}", *, timeout_s: float) -> tuple[int, bytes]:
    """Return status and body of a POST, over a connection of its own: it may take long.

    Raises OSError or http.client.HTTPException when no answer comes.
    """
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        return _exchange(connection, "POST", path, body)
    finally:
        connection.close()


def close(address: str) -> None:
    """Close the kept connection to a server, if there is one."""
    with _kept_lock:
        kept = _kept.pop(address, None)
    if kept is not None:
        with kept.lock:
            kept.connection.close()


def unreachable(address: str, error: Exception) -> ServerError:
    """Return the error for a server that gives no answer."""
    return ServerError(
        f"no answer from triton at {address}: {error or type(error).__name__}",
        hint="see whether it still runs, and read the last lines of its log",
    )


def reason(body: bytes) -> str:
    """Return what Triton says in the body of a refusal."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace") or "no reason given"


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None,
) -> tuple[int, bytes]:
    connection.request(method, path, body=body)
    response = connection.getresponse()
    return response.status, response.read()


@atexit.register
def _close_all() -> None:
    for address in list(_kept):
        close(address)
