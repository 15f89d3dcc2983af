"""What both sides of a benchmark are sent, and which shapes are whose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpsbench.duets import requests
from hpsbench.duets.benchmarks import DuetBenchmark, benchmarks_of
from hpsbench.duets.decision import BASELINE, CANDIDATE
from hpsbench.duets.requests import (
    OptionRequests,
    RequestSource,
    WrittenRequests,
    option_requests,
    same_requests,
)
from hpsbench.errors import ConfigError, InputsDiffer
from hpsbench.servers.metadata import InputMetadata, ModelMetadata

MODELS = ("dlrm", "ranker")


@dataclass
class FakeServer:
    name: str

    @property
    def http(self) -> str:
        return f"{self.name}:1"


def model(name: str = "dlrm", max_batch_size: int = 0, **shapes: tuple[int, ...]) -> ModelMetadata:
    inputs = (InputMetadata(name=n, datatype="FP32", shape=s) for n, s in shapes.items())
    return ModelMetadata(model=name, max_batch_size=max_batch_size, inputs=tuple(inputs))


def metadata(datatype: str = "INT32", max_batch_size: int = 0, **more: Any) -> ModelMetadata:
    inputs = [InputMetadata(name="ids", datatype=datatype, shape=(-1, 26))]
    inputs += [InputMetadata(name=name, datatype="FP32", shape=(1,)) for name in more]
    return ModelMetadata(model="dlrm", max_batch_size=max_batch_size, inputs=tuple(inputs))


def asked(
    monkeypatch: pytest.MonkeyPatch,
    source: RequestSource,
    baseline: dict[str, ModelMetadata],
    candidate: dict[str, ModelMetadata] | None = None,
    batch_size: int = 3,
) -> dict[DuetBenchmark, list[Any]]:
    """Return the first request to each side, by benchmark."""
    described = {f"{BASELINE}:1": baseline, f"{CANDIDATE}:1": candidate or baseline}
    monkeypatch.setattr(requests, "read_metadata", lambda address, name: described[address][name])
    ask = same_requests(source, list(baseline))
    return {
        benchmark: [
            ask(name, FakeServer(name), benchmark)[0]  # type: ignore[arg-type]
            for name in (BASELINE, CANDIDATE)
        ]
        for benchmark in benchmarks_of((name, batch_size) for name in baseline)
    }


def test_both_sides_are_sent_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    ((baseline, candidate),) = asked(monkeypatch, OptionRequests(), {"dlrm": metadata()}).values()
    assert baseline["ids"].shape == (3, 26)
    assert baseline["ids"].tobytes() == candidate["ids"].tobytes()


@pytest.mark.parametrize(
    ("candidate", "difference"),
    [
        (metadata("INT64"), r"ids: INT32 \[-1, 26\] -> INT64 \[-1, 26\]"),
        (metadata(dense=1), r"dense: none -> FP32 \[1\]"),
        (metadata(max_batch_size=8), "max_batch_size 0 -> max_batch_size 8"),
    ],
)
def test_sides_that_take_different_inputs_cannot_be_compared(
    candidate: ModelMetadata, difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputsDiffer, match=difference):
        asked(monkeypatch, OptionRequests(), {"dlrm": metadata()}, {"dlrm": candidate})


def shapes_sent(
    monkeypatch: pytest.MonkeyPatch, *options: str, **models: ModelMetadata
) -> dict[str, dict[str, tuple[int, ...]]]:
    sent = asked(monkeypatch, option_requests(options, list(models)), models, batch_size=1)
    return {b.model: {n: t.shape for n, t in first.items()} for b, (first, _) in sent.items()}


def test_a_shape_is_of_every_model_that_has_the_input_unless_it_names_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = {
        "dlrm": model(ids=(-1, -1), dense=(-1, 13)),
        "ranker": model("ranker", ids=(-1, -1), scores=(-1, -1)),
    }
    options = ("ids:3,26", "ranker/ids:3,4", "scores:3,2")
    assert shapes_sent(monkeypatch, *options, **both) == {
        "dlrm": {"ids": (3, 26), "dense": (1, 13)},
        "ranker": {"ids": (3, 4), "scores": (3, 2)},
    }


def test_inputs_with_a_slash_in_their_name_are_no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = model(**{"serving/ids": (-1, -1)})
    sent = shapes_sent(monkeypatch, "serving/ids:3,2", dlrm=odd)
    assert sent == {"dlrm": {"serving/ids": (3, 2)}}


@pytest.mark.parametrize(
    ("option", "models", "problem"),
    [
        ("idz:3,2", MODELS, "--shape idz: none of the models has such an input"),
        ("ranker/dense:3,2", MODELS[::-1], "--shape dense: model ranker has no such input"),
        ("idz:3,2", MODELS[:1], "--shape idz: model dlrm has no such input"),
        ("dense:3,13", MODELS, "input ids of model dlrm has the shape"),
    ],
)
def test_a_shape_that_fits_nothing_is_an_error_that_names_the_inputs(
    option: str, models: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {
        "dlrm": model(ids=(-1, -1), dense=(-1, 13)),
        "ranker": model("ranker", ids=(-1, 4)),
    }
    with pytest.raises(ConfigError) as caught:
        shapes_sent(monkeypatch, option, **{name: known[name] for name in models})
    assert problem in caught.value.problem
    assert "ids" in caught.value.hint


def test_one_file_may_hold_the_inputs_of_several_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps({"data": [{"ids": [1, 2], "scores": [3]}]}))
    both = {
        "dlrm": model(max_batch_size=8, ids=(2,)),
        "ranker": model("ranker", max_batch_size=8, scores=(1,)),
    }
    sent = asked(monkeypatch, OptionRequests(input_data=file), both)
    assert [{n: t.shape for n, t in first.items()} for first, _ in sent.values()] == [
        {"ids": (3, 2)},
        {"scores": (3, 1)},
    ]
    file.write_text(json.dumps({"data": [{"ids": [1, 2]}]}))
    with pytest.raises(ConfigError, match="lacks the input scores of model ranker"):
        asked(monkeypatch, OptionRequests(input_data=file), both)


def test_a_written_request_is_whole_whatever_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "requests.json"
    whole = {"ids": {"content": [1, 2, 3, 4, 5, 6], "shape": [3, 2]}}
    file.write_text(json.dumps({"data": [whole]}))
    source = WrittenRequests(files=dict.fromkeys(benchmarks_of([("dlrm", 3)]), file))
    sent = asked(monkeypatch, source, {"dlrm": model(ids=(-1, 2))})
    ((first, _),) = sent.values()
    assert first["ids"].tolist() == [[1, 2], [3, 4], [5, 6]]
