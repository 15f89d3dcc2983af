"""What both sides of each benchmark are sent: the same requests, made for what its model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hpsbench.duets.benchmarks import DuetBenchmark
from hpsbench.duets.decision import BASELINE, CANDIDATE
from hpsbench.duets.pairs import Ask
from hpsbench.errors import ConfigError, InputsDiffer
from hpsbench.load.client import Tensor
from hpsbench.load.inputs import Requests, parse_shapes
from hpsbench.servers.metadata import InputMetadata, ModelMetadata, read_metadata
from hpsbench.servers.triton import TritonServer

Shapes = Mapping[str, tuple[int, ...]]


class RequestSource(Protocol):
    """Where the requests of benchmarks come from."""

    def check(self, models: Sequence[ModelMetadata]) -> None:
        """Raise ConfigError for what fits none of these, which are all that are asked."""

    def requests(self, benchmark: DuetBenchmark, model: ModelMetadata) -> list[dict[str, Tensor]]:
        """Return the requests to send in turn. Raises ConfigError where they do not fit."""


@dataclass(frozen=True, kw_only=True)
class OptionRequests:
    """Requests as the options have them; `anywhere` are shapes for models that have such inputs.

    `of_model` are shapes for one model each, which must have the inputs.
    """

    anywhere: Shapes = field(default_factory=dict)
    of_model: Mapping[str, Shapes] = field(default_factory=dict)
    data: str = "random"
    input_data: Path | None = None

    def check(self, models: Sequence[ModelMetadata]) -> None:
        """Raise ConfigError for the first shape whose input no model has."""
        taken = {m.model: [i.name for i in m.inputs] for m in models}
        for name in self.anywhere:
            if not any(name in inputs for inputs in taken.values()):
                told = "; ".join(f"{model}: {', '.join(names)}" for model, names in taken.items())
                raise ConfigError(
                    f"--shape {name}: none of the models has such an input",
                    hint=f"their inputs: {told}",
                )

    def requests(self, benchmark: DuetBenchmark, model: ModelMetadata) -> list[dict[str, Tensor]]:
        """Return the requests of this batch size. Raises ConfigError where they do not fit."""
        own = self.of_model.get(benchmark.model, {})
        inputs = {taken.name for taken in model.inputs}
        shapes = {name: shape for name, shape in self.anywhere.items() if name in inputs}
        made = Requests(shapes={**shapes, **own}, data=self.data, input_data=self.input_data)
        return made.of(model, benchmark.batch_size)


@dataclass(frozen=True, kw_only=True)
class WrittenRequests:
    """Requests in files, one a benchmark, each entry of which is a whole request."""

    files: Mapping[DuetBenchmark, Path]

    def check(self, models: Sequence[ModelMetadata]) -> None:
        """Do nothing: each file was written for its model."""

    def requests(self, benchmark: DuetBenchmark, model: ModelMetadata) -> list[dict[str, Tensor]]:
        """Return the requests in the benchmark's file. Raises ConfigError where they do not fit."""
        return Requests(input_data=self.files[benchmark]).of(model, 1)


def option_requests(
    options: Sequence[str],
    models: Sequence[str],
    *,
    data: str = "random",
    input_data: Path | None = None,
) -> OptionRequests:
    """Return the requests of `--shape` options: `NAME:1,26`, or `MODEL/NAME:1,26` for one model.

    Raises ConfigError for anything else. Where one model is asked, all shapes are its own.
    """
    anywhere: dict[str, tuple[int, ...]] = {}
    of_model: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in parse_shapes(options).items():
        model, _, taken = name.partition("/")
        if taken and model in models:
            of_model.setdefault(model, {})[taken] = shape
        elif len(models) == 1:
            of_model.setdefault(models[0], {})[name] = shape
        else:
            anywhere[name] = shape
    return OptionRequests(anywhere=anywhere, of_model=of_model, data=data, input_data=input_data)


def same_requests(source: RequestSource, models: Sequence[str]) -> Ask:
    """Return an `Ask` that sends both sides of a benchmark the same; ask for the baseline first.

    It raises InputsDiffer where the two take different inputs, and ConfigError where requests do
    not fit, or something in `source` fits none of `models`.
    """
    checked: list[ModelMetadata] = []
    baseline: dict[DuetBenchmark, tuple[ModelMetadata, list[dict[str, Tensor]]]] = {}

    def ask(
        name: str, server: TritonServer, benchmark: DuetBenchmark
    ) -> Sequence[Mapping[str, Tensor]]:
        if not checked:
            described = [read_metadata(server.http, model) for model in models]
            source.check(described)
            checked.extend(described)
        taken = read_metadata(server.http, benchmark.model)
        if name == BASELINE:
            # Large batches take their time to make, so the candidate's are not made once more.
            baseline.clear()
            baseline[benchmark] = taken, source.requests(benchmark, taken)
        elif name == CANDIDATE:
            _require_same_inputs(baseline[benchmark][0], taken)
        return baseline[benchmark][1]

    return ask


def _require_same_inputs(baseline: ModelMetadata, candidate: ModelMetadata) -> None:
    ours, theirs = ({i.name: i for i in m.inputs} for m in (baseline, candidate))
    batching = [f"max_batch_size {m.max_batch_size}" for m in (baseline, candidate)]
    differing = [
        f"{name}: {_described(ours.get(name))} -> {_described(theirs.get(name))}"
        for name in sorted(ours.keys() | theirs.keys())
        if _described(ours.get(name)) != _described(theirs.get(name))
    ]
    if bool(baseline.max_batch_size) != bool(candidate.max_batch_size):
        differing.append(" -> ".join(batching))
    if differing:
        raise InputsDiffer(
            f"baseline and candidate take different inputs: {'; '.join(differing)}",
            hint="compare models that answer the same requests",
        )


def _described(taken: InputMetadata | None) -> str:
    return "none" if taken is None else f"{taken.datatype} {list(taken.shape)}"
