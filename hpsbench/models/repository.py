"""A Triton model repository on disk: folders, `config.pbtxt` and a thin `model.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: What runs a model's Python: Triton's own backend, each in a process of its own, or this
#: project's, in Triton's process (`hpsbench.servers.in_process`).
PYTHON, IN_PROCESS = "python", "hpsbench"
#: What Triton runs for each model; the class does the work, the file stays one line to read.
_MODEL_PY = "from hpsbench.servers.backend.{module} import TritonPythonModel  # noqa: F401\n"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a model's interface: Triton data type (`TYPE_FP32`) and dims, -1 for any."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class EnsembleStep:
    """One step of an ensemble; maps go from the step's tensor to the ensemble's."""

    model: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True)
class ModelRepository:
    """The folder that Triton is started on; each `add_` writes one model, version 1."""

    root: Path
    #: `KIND_CPU`, or `KIND_GPU` where one is present.
    instance_kind: str = "KIND_CPU"

    def version_folder(self, model: str) -> Path:
        """Return (and make) the folder of a model's version 1, for its artefacts."""
        folder = self.root / model / "1"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add_python_model(
        self,
        model: str,
        module: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        parameters: Mapping[str, str],
        warm_up: Mapping[str, tuple[int, ...]] | None = None,
        *,
        backend: str = PYTHON,
    ) -> None:
        """Write a model in Python that runs `hpsbench.servers.backend.<module>` in a backend.

        `warm_up` gives the shape of each input of a request of zeros that Triton runs before it
        calls the model ready: tables are opened by the first lookup, which must not be a client's.
        """
        (self.version_folder(model) / "model.py").write_text(_MODEL_PY.format(module=module))
        blocks = [
            f"name: {_quoted(model)}",
            f"backend: {_quoted(backend)}",
            # 0: the first dimension is the batch, written out in the dims; Triton adds none.
            "max_batch_size: 0",
            *(_tensor("input", spec) for spec in inputs),
            *(_tensor("output", spec) for spec in outputs),
            f"instance_group [{{ count: 1, kind: {self.instance_kind} }}]",
            *(_parameter(key, value) for key, value in sorted(parameters.items())),
            *([_warm_up(inputs, warm_up)] if warm_up else []),
        ]
        self._write_config(model, blocks)

    def add_ensemble(
        self,
        model: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        steps: Sequence[EnsembleStep],
    ) -> None:
        """Write an ensemble of models that are in this repository."""
        self.version_folder(model)
        blocks = [
            f"name: {_quoted(model)}",
            'platform: "ensemble"',
            "max_batch_size: 0",
            *(_tensor("input", spec) for spec in inputs),
            *(_tensor("output", spec) for spec in outputs),
            "ensemble_scheduling {\n  step [\n"
            + ",\n".join(_step(step) for step in steps)
            + "\n  ]\n}",
        ]
        self._write_config(model, blocks)

    def _write_config(self, model: str, blocks: Sequence[str]) -> None:
        (self.root / model / "config.pbtxt").write_text("\n".join(blocks) + "\n", "utf-8")


def _quoted(text: str) -> str:
    return json.dumps(text)


def _tensor(role: str, spec: TensorSpec) -> str:
    dims = ", ".join(map(str, spec.dims))
    return f"{role} [{{ name: {_quoted(spec.name)}, data_type: {spec.data_type}, dims: [{dims}] }}]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)}, value: {{ string_value: {_quoted(value)} }} }}"


def _warm_up(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> str:
    lines = [
        f"  inputs {{ key: {_quoted(spec.name)}, value: {{ data_type: {spec.data_type}, "
        f"dims: {list(shapes[spec.name])}, zero_data: true }} }}"
        for spec in inputs
    ]
    return "\n".join(['model_warmup [{ name: "zeros"', *lines, "}]"])


def _step(step: EnsembleStep) -> str:
    lines = [f"    {{ model_name: {_quoted(step.model)}, model_version: -1"]
    for name, mapping in (("input_map", step.input_map), ("output_map", step.output_map)):
        for key, value in mapping.items():
            lines.append(f"      {name} {{ key: {_quoted(key)}, value: {_quoted(value)} }}")
    return "\n".join(lines) + " }"
