"""Real Redis servers for tests: one node, with or without TLS, or a cluster."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """Return a port below 55535, so that a cluster's bus port, 10000 above, exists."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 55535:
            return int(port)


class RedisServer:
    """A `redis-server` process, which can be killed and started again on its port."""

    def __init__(self, folder: Path, *options: str, tls: bool = False) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._folder = folder / f"redis-{self.port}"
        self._folder.mkdir(parents=True)
        ports = ("--port", "0", "--tls-port", str(self.port)) if tls else ("--port", str(self.port))
        self._command = [
            "redis-server", *ports, "--bind", "127.0.0.1", "--dir", str(self._folder),
            "--logfile", "redis.log", "--appendonly", "no", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it accepts connections."""
        self._process = subprocess.Popen(self._command)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._folder / "redis.log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.02)
        raise TimeoutError("redis-server did not start")

    def kill(self) -> None:
        """End it with SIGKILL: nothing is saved."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Have it accept connections, and answer none."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> str:
        """Return the answer of redis-cli."""
        result = subprocess.run(
            ["redis-cli", "-p", str(self.port), *words], capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    def fields(self) -> int:
        """Return how many rows all hashes of this node have."""
        names = self.command("keys", "*").split()
        return sum(
            int(self.command("hlen", name)) - int(self.command("hexists", name, ""))
            for name in names
        )


@contextlib.contextmanager
def redis_server(folder: Path, *options: str, tls: bool = False) -> Iterator[RedisServer]:
    """Run a server, which keeps nothing on disk, as long as the context."""
    server = RedisServer(folder, "--save", "", *options, tls=tls)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def redis_cluster(folder: Path) -> Iterator[list[RedisServer]]:
    """Run a cluster of three nodes."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--save", "")
    with contextlib.ExitStack() as stack:
        nodes = [RedisServer(folder, *options) for _ in range(3)]
        for node in nodes:
            node.start()
            stack.callback(node.kill)
        subprocess.run(
            ["redis-cli", "--cluster", "create", *(n.address for n in nodes), "--cluster-yes"],
            check=True, capture_output=True,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while not all("cluster_state:ok" in n.command("cluster", "info") for n in nodes):
            assert time.monotonic() < deadline, "the cluster did not come up"
            time.sleep(0.1)
        yield nodes


def write_certificates(folder: Path) -> dict[str, str]:
    """Return paths of a new authority (ca) and of what it signed: server and client, cert and key.

    The server is called redis.test.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt",
        "-days", "2", "-subj", "/CN=test authority",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    for name in ("server", "client"):
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key",
            "-out", f"{name}.csr", "-subj", "/CN=redis.test",
        )  # fmt: skip
        (folder / "names").write_text("subjectAltName=DNS:redis.test\n")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", f"{name}.crt", "-days", "2", "-extfile", "names",
        )  # fmt: skip
    return {p.name: str(p) for p in folder.iterdir()}
