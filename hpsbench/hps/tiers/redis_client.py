"""A connection to Redis that fails soon and reconnects by itself: one node or a cluster."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

from hpsbench.errors import HpsError
from hpsbench.hps.configuration import VolatileDatabase

#: A node that does not answer in this time has failed, and the lookup goes on without it.
TIMEOUT_S = 0.5
_PACKAGE_HINT = "pip install 'hpsbench[tiers]', or pip install redis hiredis"


class RedisClient:
    """The nodes that a configuration's `redis_cluster` names, asked through pipelines.

    At most `num_node_connections` threads ask at a time; more wait for their turn.
    """

    def __init__(self, section: VolatileDatabase) -> None:
        """Raises HpsError where the package or a TLS file is missing."""
        try:
            import redis
        except ImportError as error:
            raise HpsError(
                "volatile_db: redis_cluster needs the package redis", hint=_PACKAGE_HINT
            ) from error
        self._redis = redis
        self._addresses = section.addresses
        self._options = _connection_options(section)
        self._max_connections = section.num_node_connections
        self._turns = threading.BoundedSemaphore(section.num_node_connections)
        self._lock = threading.Lock()
        self._client: Any = None
        self._run_ids: dict[tuple[str, int], str] = {}
        self._restarted = False

    def pipeline(self) -> Pipeline:
        """Return an empty pipeline; raises redis.RedisError where no node can be reached."""
        return Pipeline(self._connected().pipeline(transaction=False), self._turns, self._check)

    def ping(self) -> None:
        """Connect anew where need be, and raise redis.RedisError unless all nodes answer."""
        client = self._connected()
        if isinstance(client, self._redis.RedisCluster):
            client.ping(target_nodes="primaries")
        else:
            client.ping()

    def forget_restart(self) -> bool:
        """Return whether a node was started anew since the last call."""
        with self._lock:
            restarted, self._restarted = self._restarted, False
            return restarted

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _check(self) -> None:
        if self._restarted:
            raise self._redis.ConnectionError("a server was started anew")

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        problem: Exception | None = None
        for host, port in self._addresses:
            try:
                single = self._single(host, port)
                if not single.info("cluster").get("cluster_enabled"):
                    return single
                single.close()
                return self._cluster(host, port)
            except self._redis.AuthenticationError:
                raise
            except self._redis.RedisError as error:
                problem = error
        assert problem is not None
        raise problem

    def _single(self, host: str, port: int) -> Any:
        pool = self._redis.BlockingConnectionPool(
            host=host, port=port, max_connections=self._max_connections + 1, timeout=TIMEOUT_S,
            retry=self._no_retry(0), redis_connect_func=self._greet, **self._options,
        )  # fmt: skip
        return self._redis.Redis(connection_pool=pool)

    def _cluster(self, host: str, port: int) -> Any:
        from redis.cluster import ClusterNode

        return self._redis.RedisCluster(
            url=f"redis://{host}:{port}",  # so that the options for the pool reach it
            startup_nodes=[ClusterNode(h, p) for h, p in self._addresses],
            max_connections=self._max_connections + 1, retry=self._no_retry(1),
            require_full_coverage=False, redis_connect_func=self._note_run_id, **self._options,
        )  # fmt: skip

    def _no_retry(self, retries: int) -> Any:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return Retry(NoBackoff(), retries)

    def _greet(self, connection: Any) -> None:
        connection.on_connect()
        self._note_run_id(connection)

    def _note_run_id(self, connection: Any) -> None:
        connection.send_command("INFO", "server")
        answer = connection.read_response()
        text = answer.decode() if isinstance(answer, bytes) else str(answer)
        found = re.search(r"run_id:(\w+)", text)
        if found is None:
            return
        node = (connection.host, connection.port)
        if self._run_ids.setdefault(node, found[1]) != found[1]:
            self._run_ids[node] = found[1]
            self._restarted = True


class Pipeline:
    """Commands sent together; those of redis-py, whose answers come as a list."""

    def __init__(self, pipeline: Any, turns: threading.BoundedSemaphore, check: Any) -> None:
        """`check` raises where the answers must not be believed."""
        self._pipeline, self._turns, self._check = pipeline, turns, check

    def __getattr__(self, command: str) -> Any:
        return getattr(self._pipeline, command)

    def execute(self) -> list[Any]:
        """Return the answers, in order; raises redis.RedisError where a node fails."""
        with self._turns:
            answers: list[Any] = self._pipeline.execute()
        self._check()
        return answers


def _connection_options(section: VolatileDatabase) -> dict[str, Any]:
    from redis.connection import Connection

    options: dict[str, Any] = {
        "connection_class": Connection,
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "protocol": 2,
    }
    if section.password:
        options |= {"username": section.user_name, "password": section.password}
    if not section.enable_tls:
        return options
    for field in ("tls_ca_certificate", "tls_client_certificate", "tls_client_key"):
        path = getattr(section, field)
        if path and not Path(path).is_file():
            raise HpsError(
                f"volatile_db.{field} is {path!r}, and there is no such file",
                hint="give the path of a PEM file, or an empty string for none",
            )
    return options | {
        "connection_class": _tls_connection(section.tls_server_name_identification),
        "ssl_ca_certs": section.tls_ca_certificate or None,
        "ssl_certfile": section.tls_client_certificate or None,
        "ssl_keyfile": section.tls_client_key or None,
    }


def _tls_connection(server_name: str) -> type:
    """Return a class of connections that ask for, and check, the certificate of `server_name`."""
    from redis.connection import SSLConnection

    class NamedConnection(SSLConnection):  # type: ignore[misc]
        host: str

        def _wrap_socket_with_ssl(self, sock: Any) -> Any:
            address, self.host = self.host, server_name or self.host
            try:
                return super()._wrap_socket_with_ssl(sock)
            finally:
                self.host = address

    return NamedConnection
