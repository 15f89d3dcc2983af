"""A running Triton: its addresses, models and statistics, and its end whatever happens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from hpsbench.config import ServerConfig
from hpsbench.errors import ServerDied, ServerError
from hpsbench.servers import http
from hpsbench.servers.attach import attach
from hpsbench.servers.endpoint import Endpoint
from hpsbench.servers.in_process.library import is_used
from hpsbench.servers.installation import find_triton
from hpsbench.servers.launch import STOP_GRACE_S, died, launch
from hpsbench.servers.process import ChildProcess
from hpsbench.servers.statistics import (
    LookupCount,
    ModelStatistics,
    engines,
    lookup_counts,
    read_metrics,
    read_statistics,
)
from hpsbench.servers.traces import Tracing, find_tracing


class TritonServer:
    """Triton at three addresses (`host:port`); `process` is None where somebody else runs it."""

    def __init__(
        self,
        *,
        http: str,
        grpc: str | None,
        metrics: str | None,
        config: ServerConfig,
        process: ChildProcess | None = None,
    ) -> None:
        self.http = http
        self.grpc = grpc
        self.metrics = metrics
        self._config = config
        self._process = process

    @property
    def pid(self) -> int | None:
        """The process id of tritonserver, None where somebody else runs it."""
        return self._process.pid if self._process is not None else None

    @property
    def log(self) -> Path | None:
        """The file with tritonserver's output, None where somebody else runs it."""
        return self._process.log if self._process is not None else None

    def endpoint(self, model: str, timed_models: Sequence[str] | None = None) -> Endpoint:
        """Return where `model` answers; `timed_models` are an ensemble's steps, else itself."""
        return Endpoint(
            http=self.http,
            grpc=self.grpc,
            metrics=self.metrics,
            model=model,
            timed_models=tuple(timed_models) if timed_models else (model,),
        )

    def load(self, model: str) -> None:
        """Load a model, or load it anew. Raises ServerError quoting Triton's reason."""
        self._control(model, "load")

    def unload(self, model: str) -> None:
        """Unload a model; one that is not loaded is no error."""
        self._control(model, "unload")

    def models(self) -> Mapping[str, str]:
        """Return the state (`READY`, `UNAVAILABLE: unloaded`) of every model Triton knows."""
        try:
            status, body = http.post(self.http, "/v2/repository/index", timeout_s=10.0)
        except http.CONNECTION_ERRORS as error:
            raise self._no_answer(error) from error
        if status != 200:
            raise ServerError(
                f"triton at {self.http} does not list its models: {http.reason(body)}",
                hint="start it with the model-repository API unrestricted",
            )
        entries = json.loads(body)
        return {
            e["name"]: ": ".join(filter(None, (e.get("state", "not loaded"), e.get("reason"))))
            for e in entries
        }

    def statistics(self, model: str) -> ModelStatistics:
        """Return a model's cumulative counters. Raises ServerDied or ServerError."""
        try:
            return read_statistics(self.http, model)
        except ServerError:
            self.check_alive()
            raise

    def tracing(self) -> Tracing | None:
        """Return how to trace requests, None where it cannot be done. Raises as `statistics`."""
        try:
            return find_tracing(self.http)
        except ServerError:
            self.check_alive()
            raise

    def server_metrics(self) -> dict[str, float]:
        """Return the server's metrics (`statistics.read_metrics`), empty where it offers none."""
        if self.metrics is None:
            return {}
        try:
            return read_metrics(self.metrics)
        except ServerError:
            self.check_alive()
            raise

    def engines(self) -> dict[str, str]:
        """Return what runs each model (`ONNX Runtime 1.32.0, CPU`), of those that tell."""
        return engines(self.server_metrics())

    def lookups(self) -> dict[str, dict[str, LookupCount]]:
        """Return what each model's lookups counted, by model and tier, of those that tell."""
        return lookup_counts(self.server_metrics())

    def is_alive(self) -> bool:
        """Return whether the process runs; for somebody else's, whether it answers."""
        if self._process is not None:
            return self._process.is_running()
        try:
            return http.get(self.http, "/v2/health/live")[0] == 200
        except http.CONNECTION_ERRORS:
            return False

    def check_alive(self) -> None:
        """Raise ServerDied, with the exit status and the last lines of the log, unless alive."""
        if self.is_alive():
            return
        if self._process is not None:
            raise died(self._process, "while it was needed")
        raise ServerDied(
            f"triton at {self.http} answers no more",
            hint="read its log where it runs, and start it again",
        )

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End the process and what belongs to it; somebody else's goes on. May be repeated.

        Triton takes some three seconds to unload its models; after `grace_s` it is killed.
        """
        for address in filter(None, (self.http, self.metrics)):
            http.close(address)
        if self._process is not None:
            self._process.stop(grace_s)

    def _control(self, model: str, action: str) -> None:
        path = f"/v2/repository/models/{quote(model, safe='')}/{action}"
        try:
            status, body = http.post(self.http, path, timeout_s=self._config.startup_timeout_s)
        except http.CONNECTION_ERRORS as error:
            raise self._no_answer(error) from error
        if status != 200:
            raise ServerError(
                f"triton could not {action} {model!r}: {http.reason(body)}",
                hint=f"read {self.log}" if self.log else "read its log where it runs",
            )

    def _no_answer(self, error: Exception) -> ServerError:
        try:
            self.check_alive()
        except ServerDied as dead:
            return dead
        return http.unreachable(self.http, error)


@contextmanager
def running_triton(
    repository: Path,
    models: Sequence[str],
    config: ServerConfig,
    *,
    log: Path,
    complete_config: bool = False,
    python: Path | None = None,
) -> Iterator[TritonServer]:
    """Yield a Triton that has `models` ready, and stop it afterwards, whatever happens.

    A fresh process on free loopback ports whose output goes to `log`, which fills in what models'
    configurations leave out where `complete_config` says so, and runs Python models in the
    environment of the interpreter `python`, by default of this one; or, where `config.triton` is a
    URL, the server there, which must have the models ready and is left running. Raises
    ServerNotReady, ServerDied or ServerError, each with Triton's own words.
    """
    if "://" in config.triton:
        server = attached_triton(config, models)
    else:
        launched = launch(
            # Any of them may be loaded later.
            find_triton(config.triton, python, in_process=is_used(repository)),
            repository,
            models,
            log=log,
            timeout_s=config.startup_timeout_s,
            complete_config=complete_config,
        )
        server = TritonServer(
            http=launched.http,
            grpc=launched.grpc,
            metrics=launched.metrics,
            config=config,
            process=launched.process,
        )
    try:
        yield server
    finally:
        server.stop()


def attached_triton(config: ServerConfig, models: Sequence[str]) -> TritonServer:
    """Return the running Triton at the URL `config.triton`; `stop` closes connections only.

    Raises ServerError where none answers, or naming the models that it has not ready.
    """
    addresses = attach(config.triton)
    server = TritonServer(
        http=addresses.http, grpc=addresses.grpc, metrics=addresses.metrics, config=config
    )
    states = server.models()
    missing = [model for model in dict.fromkeys(models) if states.get(model) != "READY"]
    if missing:
        server.stop()
        there = ", ".join(f"{name} ({state})" for name, state in sorted(states.items()))
        raise ServerError(
            f"triton at {config.triton} has not ready: {', '.join(missing)}; "
            f"it has: {there or 'no model'}",
            hint="serve the suite's model repository there, or pass --triton bundled",
        )
    return server
