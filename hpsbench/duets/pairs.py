"""Two servers side by side, baseline and candidate: fresh Tritons, or ones that run already."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hpsbench.config import ServerConfig
from hpsbench.duets.answers import Answers
from hpsbench.duets.benchmarks import DuetBenchmark
from hpsbench.duets.decision import BASELINE, CANDIDATE
from hpsbench.errors import ConfigError
from hpsbench.load.client import Client, Tensor, connect
from hpsbench.load.interleaved import Participant
from hpsbench.servers.cpus import even_shares, on_cpus
from hpsbench.servers.triton import TritonServer, running_triton

NAMES = (BASELINE, CANDIDATE)
#: Requests whose answers are compared, of those that are sent in turn.
COMPARED_REQUESTS = 4

#: Says what to send to whom: (BASELINE or CANDIDATE, its server, benchmark) -> requests in turn.
Ask = Callable[[str, TritonServer, DuetBenchmark], Sequence[Mapping[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One side of a duet: a model repository, or a Triton that runs at `config.triton`.

    `models` are all to load: those that are asked, and the steps of ensembles among them.
    """

    models: tuple[str, ...]
    repository: Path
    config: ServerConfig
    log: Path
    complete_config: bool = False
    #: The interpreter of another environment, for Python models.
    python: Path | None = None

    @property
    def is_running(self) -> bool:
        """Whether somebody else runs its server, so that no launch of it is fresh."""
        return "://" in self.config.triton


def contender(
    source: str,
    *,
    models: Sequence[str],
    config: ServerConfig,
    log: Path,
    neither: str = "no folder and no URL",
) -> Contender:
    """Return what `source` is: the folder of a Triton model repository, or `http://HOST:PORT`.

    Raises ConfigError where it is `neither`, or the folder does not hold one of `models`.
    """
    if "://" in source:
        running = replace(config, triton=source)
        return Contender(models=tuple(models), repository=Path(), config=running, log=log)
    repository = Path(source).resolve()
    if not repository.is_dir():
        raise ConfigError(
            f"{source} is {neither}",
            hint="give the folder of a Triton model repository, or http://HOST:PORT",
        )
    missing = [model for model in models if not (repository / model).is_dir()]
    if missing:
        held = sorted(p.name for p in repository.iterdir() if (p / "config.pbtxt").is_file())
        raise ConfigError(
            f"the model repository {source} has no model {missing[0]!r}",
            hint=f"its models: {', '.join(held) or 'none; is it the folder above the models?'}",
        )
    return Contender(
        models=tuple(models),
        repository=repository,
        config=config,
        log=log,
        complete_config=not _configurations_are_complete(repository),
    )


def _configurations_are_complete(repository: Path) -> bool:
    """Return whether every model's config.pbtxt tells its inputs and outputs."""
    for folder in (p for p in repository.iterdir() if p.is_dir()):
        try:
            text = (folder / "config.pbtxt").read_text("utf-8")
        except OSError:
            return False
        if not all(
            re.search(rf"^\s*{field}\s*[\[{{:]", text, re.M) for field in ("input", "output")
        ):
            return False
    return True


@dataclass(frozen=True)
class ServedPair:
    """Both servers of one launch, ready, with the models of every benchmark."""

    servers: Mapping[str, TritonServer]
    ask: Ask
    request_timeout_s: float
    protocol: str = "http"

    def participants(self, benchmark: DuetBenchmark) -> list[Participant]:
        """Return both sides, each with an open client; raises ConfigError, RequestError."""
        served: list[Participant] = []
        try:
            for name in NAMES:
                served.append(self._participant(name, benchmark))
        except BaseException:
            for participant in served:
                participant.close()
            raise
        return served

    def _participant(self, name: str, benchmark: DuetBenchmark) -> Participant:
        server = self.servers[name]
        requests = self.ask(name, server, benchmark)
        tracing = server.tracing()
        client = self._client(name, benchmark, requests)
        return Participant(
            name=name,
            send=client.send,
            endpoint=server.endpoint(benchmark.model),
            statistics=server.statistics,
            tracing=tracing,
            close=client.close,
        )

    def answers(self, benchmark: DuetBenchmark) -> dict[str, Answers]:
        """Return what both sides answer to the first few requests; raises as `participants`."""
        found: dict[str, Answers] = {}
        for name in NAMES:
            requests = self.ask(name, self.servers[name], benchmark)[:COMPARED_REQUESTS]
            with self._client(name, benchmark, requests) as client:
                found[name] = [client.infer() for _ in requests]
        return found

    def _client(
        self, name: str, benchmark: DuetBenchmark, requests: Sequence[Mapping[str, Tensor]]
    ) -> Client:
        return connect(
            self.servers[name].endpoint(benchmark.model),
            requests,
            protocol=self.protocol,
            timeout_s=self.request_timeout_s,
        )

    def check_alive(self) -> None:
        """Raise ServerDied, with the last lines of its log, unless both still run."""
        for server in self.servers.values():
            server.check_alive()


@contextmanager
def fresh_pair(
    contenders: Mapping[str, Contender], ask: Ask, number: int, *, protocol: str = "http"
) -> Iterator[ServedPair]:
    """Start both contenders' servers for launch `number`, and yield them ready.

    Who starts first, and who gets which half of the CPUs, changes from launch to launch. Raises
    what `running_triton` raises.
    """
    shares = even_shares(os.sched_getaffinity(0)) or (None, None)
    order = NAMES if number % 2 else NAMES[::-1]
    with ExitStack() as stack:
        servers = {}
        for name, share in zip(order, shares, strict=True):
            side = contenders[name]
            with on_cpus(share):
                server = stack.enter_context(
                    running_triton(
                        side.repository,
                        side.models,
                        side.config,
                        log=side.log,
                        complete_config=side.complete_config,
                        python=side.python,
                    )
                )
            # A duet starts many servers, and none of them has anything to save.
            stack.callback(server.stop, grace_s=0)
            servers[name] = server
        yield ServedPair(
            servers,
            ask,
            contenders[BASELINE].config.request_timeout_s,
            protocol,
        )
