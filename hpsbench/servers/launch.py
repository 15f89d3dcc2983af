"""Start a Triton process on free loopback ports and wait until it is ready, or say why not."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpsbench.errors import ServerDied, ServerError, ServerNotReady
from hpsbench.machine import find_gpus
from hpsbench.servers import http
from hpsbench.servers.installation import Installation
from hpsbench.servers.process import SCRATCH, ChildProcess, Command

LOOPBACK = "127.0.0.1"
#: How long Triton waits for requests and models after SIGTERM, and how long we wait for Triton.
EXIT_TIMEOUT_S = 10
STOP_GRACE_S = 15.0
_PORT_ATTEMPTS = 4
_POLL_S = 0.02
_QUOTED_LINES = 15
_MOST_POOL_BYTES = 8 << 30

#: glibc keeps blocks of up to 32 MiB (the most that it takes) for the next request. It would else
#: give them back to the system, whose fresh pages cost a large request up to a third of its time.
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}

# What Triton logs when it will give up, long before it has unloaded everything and exits.
_LOAD_FAILED = re.compile(
    r'^E\d{4} .*"(?P<reason>(?:failed to load \'|failed to poll model|Poll failed).*)"$', re.M
)
_PORT_TAKEN = re.compile(
    r"failed to start \w+ service: .*Socket '(?P<address>[^']*)' already in use"
)


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A Triton process that is ready; addresses are `host:port`."""

    process: ChildProcess
    http: str
    grpc: str
    metrics: str


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """Yield a free loopback port that no other process is given meanwhile, and Triton can bind.

    Triton binds its ports only after it has loaded its models, which may take minutes. A socket
    that is bound with SO_REUSEADDR and does not listen keeps the kernel from handing the port out,
    and does not hinder Triton, which sets SO_REUSEADDR too.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((LOOPBACK, 0))
        except OSError as error:
            raise ServerError(
                f"no free port on {LOOPBACK}: {error.strerror}",
                hint="see what holds them all: ss -tan",
            ) from error
        yield holder.getsockname()[1]


def launch(
    installation: Installation,
    repository: Path,
    models: Sequence[str],
    *,
    log: Path,
    timeout_s: float,
    complete_config: bool = False,
) -> Launched:
    """Return a ready Triton that serves `models` out of `repository`.

    `complete_config` lets Triton fill in what a model's configuration leaves out. Raises
    ServerNotReady after `timeout_s`, ServerDied when the process ends before, and ServerError when
    a model cannot be loaded or the ports are taken time and again.
    """
    for _ in range(_PORT_ATTEMPTS):
        with contextlib.ExitStack() as stack:
            ports = [stack.enter_context(held_port()) for _ in range(3)]
            name = f"hpsbench-{uuid.uuid4().hex[:12]}"
            arguments = server_arguments(
                name, repository, models, ports, complete_config=complete_config
            )
            try:
                return _launch_on(name, arguments, ports, installation, models, log, timeout_s)
            except _PortTakenError as error:
                taken = error.address
    raise ServerError(
        f"triton found its port taken {_PORT_ATTEMPTS} times, last {taken}",
        hint="another program takes free ports as they are chosen: end it, or run apart from it",
    )


class _PortTakenError(Exception):
    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


def _launch_on(
    name: str,
    arguments: Sequence[str],
    ports: Sequence[int],
    installation: Installation,
    models: Sequence[str],
    log: Path,
    timeout_s: float,
) -> Launched:
    watch = _LogWatch(log)
    process = ChildProcess(
        Command(
            arguments=[
                str(installation.binary),
                *installation.arguments,
                *arguments,
            ],
            prepend=installation.prepend,
            defaults=_MEMORY,
            links=installation.links,
            shared_memory_prefix=name,
        ),
        log=log,
    )
    addresses = [f"{LOOPBACK}:{port}" for port in ports]
    try:
        _wait_until_ready(process, watch, addresses, name, models, timeout_s)
    except BaseException:
        for address in addresses:
            http.close(address)
        process.stop(grace_s=0)
        raise
    return Launched(process=process, http=addresses[0], grpc=addresses[1], metrics=addresses[2])


def server_arguments(
    name: str,
    repository: Path,
    models: Sequence[str],
    ports: Sequence[int],
    *,
    complete_config: bool = False,
) -> list[str]:
    """Return tritonserver's arguments; `ports` are HTTP, gRPC and metrics."""
    services = zip(("http", "grpc", "metrics"), ports, strict=True)
    return [
        # Tells our server from a stranger that answers at the same address.
        f"--id={name}",
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        *[f"--load-model={model}" for model in dict.fromkeys(models)],
        # With it, every Python model starts twice: once to be asked for its configuration.
        *([] if complete_config else ["--disable-auto-complete-config"]),
        "--strict-readiness=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={name}",
        # Off until `traces.Tracing` turns it on; the file alone cannot be set at run time.
        "--trace-config=level=OFF",
        f"--trace-config=triton,file={SCRATCH}/trace.json",
        # What an ensemble's models hand over on a GPU; what does not fit goes by way of the host.
        *[
            f"--cuda-memory-pool-byte-size={number}:{min(_MOST_POOL_BYTES, gpu.memory_bytes // 8)}"
            for number, gpu in enumerate(find_gpus())
        ],
        *[
            argument
            for service, port in services
            # Triton's default is every interface.
            for argument in (f"--{service}-address={LOOPBACK}", f"--{service}-port={port}")
        ],
    ]


def _wait_until_ready(
    process: ChildProcess,
    watch: _LogWatch,
    addresses: Sequence[str],
    name: str,
    models: Sequence[str],
    timeout_s: float,
) -> None:
    started = time.monotonic()
    while not _answers_ready(addresses, name):
        running = process.is_running()
        watch.check()
        if not running:
            raise died(process, f"before it had loaded {', '.join(models) or 'anything'}")
        waited_s = time.monotonic() - started
        if waited_s > timeout_s:
            raise ServerNotReady(
                f"triton was not ready after {waited_s:.0f} s, loading {', '.join(models)}; its "
                f"last lines:\n{process.log_tail(_QUOTED_LINES)}",
                hint=f"read {process.log}; raise servers.startup_timeout_s if it was still loading",
            )
        time.sleep(_POLL_S)


def _answers_ready(addresses: Sequence[str], name: str) -> bool:
    http_address, _, metrics_address = addresses
    try:
        # The connection is refused until every model is loaded or has failed.
        if http.get(http_address, "/v2/health/ready", timeout_s=1.0)[0] != 200:
            return False
        status, body = http.get(http_address, "/v2", timeout_s=1.0)
        if status != 200 or json.loads(body).get("name") != name:
            return False
        # gRPC was there before HTTP; metrics are the last, and may yet find their port taken.
        return http.get(metrics_address, "/metrics", timeout_s=1.0)[0] == 200
    except http.CONNECTION_ERRORS:
        return False


class _LogWatch:
    """Reads what is new in a log, and raises for what Triton gives up about."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._position = log.stat().st_size if log.exists() else 0

    def check(self) -> None:
        with self._log.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        # A line that is still being written is read again.
        complete = new[: new.rfind(b"\n") + 1]
        self._position += len(complete)
        text = complete.decode("utf-8", "replace")
        if taken := _PORT_TAKEN.search(text):
            raise _PortTakenError(taken["address"])
        if failures := load_failures(text):
            raise ServerError(
                "triton could not load its models: " + "\n".join(failures),
                hint=f"mend the model, its files or its config.pbtxt; all of the log: {self._log}",
            )


def load_failures(log: str) -> list[str]:
    """Return why models could not be loaded, in Triton's words, out of its log."""
    return [m["reason"].replace("\\n", "\n").rstrip() for m in _LOAD_FAILED.finditer(log)]


def died(process: ChildProcess, when: str) -> ServerDied:
    """Return the error for a Triton process that has ended on its own, once all of it is gone."""
    status = process.stop(grace_s=0)
    ended = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
    return ServerDied(
        f"triton (process {process.pid}) {ended} {when}; its last lines:\n"
        f"{process.log_tail(_QUOTED_LINES)}",
        hint=f"read {process.log}; the kernel's log tells whether memory ran out (dmesg)",
    )
