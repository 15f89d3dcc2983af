"""What can go wrong, said so that a reader knows what, where and what to do next."""

from __future__ import annotations


class BenchError(Exception):
    """A problem that the user can act on: `problem` says what and where, `hint` what to do."""

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}\n  hint: {self.hint}"


class ConfigError(BenchError):
    """An option, a preset or a configuration file asks for something that cannot be."""


class InputsDiffer(ConfigError):
    """Two models that are to be compared do not take the same inputs."""


class TableError(BenchError):
    """An embedding table or a sparse-model folder is missing, truncated or too large."""


class HpsError(BenchError):
    """The parameter server cannot be configured, initialised or asked this way."""


class NativeBuildError(BenchError):
    """The native library could not be compiled or loaded."""


class AccuracyError(BenchError):
    """A variant of lower precision does not answer as it must, so it is not served."""


class ServerError(BenchError):
    """Triton could not be found, started, reached or kept alive."""


class ServerNotReady(ServerError):
    """Triton runs, and was not ready before its deadline."""


class ServerDied(ServerError):
    """The Triton process ended while it was needed."""


class RequestError(BenchError):
    """A request was refused, or its answer cannot be understood."""


class RequestTimeout(RequestError):
    """A request was not answered in time."""


class BaselineError(BenchError):
    """A stored baseline cannot be read, written or understood."""


class ReportError(BenchError):
    """A report cannot be written where it was asked for."""
