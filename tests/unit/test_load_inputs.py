"""The requests for any model: shapes, made-up data, and perf_analyzer's files."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsbench.errors import ConfigError
from hpsbench.load.inputs import (
    INTEGERS_BELOW,
    Requests,
    make_inputs,
    parse_shapes,
    read_input_data,
)
from hpsbench.load.perf_analyzer import input_data
from hpsbench.servers.metadata import InputMetadata, ModelMetadata, parse_metadata

#: Seed request of the published experiment: two entries would be two requests.
KEYS, NUMERICAL = list(range(26)), [0.5 + i for i in range(13)]


def model(max_batch_size: int = 0, **inputs: tuple[str, tuple[int, ...]]) -> ModelMetadata:
    return ModelMetadata(
        model="dlrm",
        max_batch_size=max_batch_size,
        inputs=tuple(
            InputMetadata(name=name, datatype=datatype, shape=shape)
            for name, (datatype, shape) in inputs.items()
        ),
    )


DLRM = model(
    categorical_features=("INT32", (-1, 26)),
    numerical_features=("FP32", (-1, 13)),
)
BATCHING = model(8, ids=("INT64", (2,)))


def written(folder: Path, data: Any) -> Path:
    path = folder / "1.json"
    path.write_text(json.dumps({"data": data}))
    return path


def test_triton_s_batch_dimension_is_no_part_of_a_sample() -> None:
    described = parse_metadata(
        {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 13]}]},
        {"max_batch_size": 4, "input": [{"name": "x", "optional": True}]},
    )
    x = InputMetadata(name="x", datatype="FP32", shape=(13,), optional=True)
    assert described == ModelMetadata(model="m", max_batch_size=4, inputs=(x,))
    unbatched = parse_metadata({"name": "m", "inputs": []}, {})
    assert unbatched.max_batch_size == 0


def test_an_open_first_dimension_is_the_batch() -> None:
    made = make_inputs(DLRM, batch_size=32, shapes={})
    assert {n: (t.dtype, t.shape) for n, t in made.items()} == {
        "categorical_features": (np.dtype(np.int32), (32, 26)),
        "numerical_features": (np.dtype(np.float32), (32, 13)),
    }
    keys, numerical = made.values()
    assert keys.min() >= 0
    assert keys.max() < INTEGERS_BELOW
    assert len(np.unique(keys)) > 1
    assert 0 <= numerical.min() < numerical.max() < 1


def test_the_batch_comes_before_the_shape_of_a_batching_model() -> None:
    open_model = model(8, ids=("INT64", (-1,)))
    assert make_inputs(BATCHING, batch_size=3, shapes={})["ids"].shape == (3, 2)
    assert make_inputs(open_model, batch_size=3, shapes={"ids": (5,)})["ids"].shape == (3, 5)


def test_data_is_the_same_for_the_same_seed_and_may_be_zero() -> None:
    once, again, other = (
        make_inputs(DLRM, batch_size=4, shapes={}, seed=s)["categorical_features"]
        for s in (1, 1, 2)
    )
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert not any(
        t.any() for t in make_inputs(DLRM, batch_size=4, shapes={}, data="zero").values()
    )


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [("BOOL", np.bool_), ("UINT8", np.uint8), ("FP16", np.float16), ("BYTES", np.object_)],
)
def test_every_datatype_of_numpy_can_be_made_up(datatype: str, dtype: type) -> None:
    for data in ("random", "zero"):
        made = make_inputs(model(x=(datatype, (2, 3))), batch_size=1, shapes={}, data=data)["x"]
        assert (made.dtype, made.shape) == (np.dtype(dtype), (2, 3))


def test_optional_inputs_are_left_out() -> None:
    described = ModelMetadata(
        model="m",
        max_batch_size=0,
        inputs=(
            InputMetadata(name="x", datatype="FP32", shape=(1,)),
            InputMetadata(name="rare", datatype="FP32", shape=(-1, -1), optional=True),
        ),
    )
    assert list(make_inputs(described, batch_size=1, shapes={})) == ["x"]


@pytest.mark.parametrize(
    ("described", "batch_size", "shapes", "problem"),
    [
        (model(x=("FP32", (-1, -1))), 2, {}, r"shape \[-1, -1\], which leaves a dimension open"),
        (model(x=("FP32", (4,))), 2, {}, "has no open batch dimension"),
        (BATCHING, 9, {}, "its max_batch_size is 8"),
        (BATCHING, 1, {"keys": (2,)}, "--shape keys: model dlrm has no such input"),
        (model(x=("BF16", (4,))), 1, {}, "datatype BF16"),
    ],
)
def test_what_stays_unknown_is_an_error(
    described: ModelMetadata, batch_size: int, shapes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_inputs(described, batch_size=batch_size, shapes=shapes)


def test_shapes_are_read_as_perf_analyzer_s() -> None:
    assert parse_shapes(["categorical_features:1,26", "a:b:3"]) == {
        "categorical_features": (1, 26),
        "a:b": (3,),
    }
    for bad in ("ids", "ids:", ":1", "ids:1,x", "ids:-1"):
        with pytest.raises(ConfigError, match="is not NAME:N,N"):
            parse_shapes([bad])


def test_the_published_request_is_read_from_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, [{"categorical_features": KEYS, "numerical_features": NUMERICAL}])
    shapes = parse_shapes(["categorical_features:1,26", "numerical_features:1,13"])
    for given in (shapes, {}):
        (request,) = Requests(shapes=given, input_data=path).of(DLRM, 1)
        assert request["categorical_features"].tolist() == [KEYS]
        assert request["categorical_features"].dtype == np.int32
        assert request["numerical_features"].tolist() == [NUMERICAL]


def test_what_our_perf_analyzer_is_given_is_read_back(tmp_path: Path) -> None:
    tensors = make_inputs(DLRM, batch_size=4, shapes={})
    path = tmp_path / "1.json"
    path.write_text(json.dumps(input_data(tensors)))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    (request,) = read_input_data(path, DLRM, batch_size=1, shapes=shapes)
    assert all(np.array_equal(request[name], tensor) for name, tensor in tensors.items())


def test_entries_are_batched_in_turn_and_start_over(tmp_path: Path) -> None:
    path = written(tmp_path, [{"ids": [n, n]} for n in range(5)])
    requests = read_input_data(path, BATCHING, batch_size=2, shapes={})
    assert [r["ids"][:, 0].tolist() for r in requests] == [[0, 1], [2, 3]]
    (only,) = read_input_data(path, BATCHING, batch_size=7, shapes={})
    assert only["ids"][:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_content_may_carry_its_shape_and_strings(tmp_path: Path) -> None:
    described = model(text=("BYTES", (-1,)), x=("FP32", (-1, -1)))
    content = {"content": [1, 2, 3, 4], "shape": [2, 2]}
    path = written(tmp_path, [[{"text": ["é"], "x": content}]])
    (request,) = read_input_data(path, described, batch_size=1, shapes={})
    assert request["text"].tolist() == ["é".encode()]
    assert request["x"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ([], "is no input data"),
        (3, "is no input data"),
        ([{"ids": [1, 2]}, {}], "entry 1 lacks the input ids"),
        ([{"ids": [1, 2, 3]}], r"3 values do not fill the shape \[1, 2\]"),
        ([{"ids": ["a", "b"]}], "ids in entry 0"),
        ([{"ids": {"b64": base64.b64encode(b"123").decode()}}], "ids in entry 0"),
        ([{"ids": {"b64": "%"}}], "ids in entry 0"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_names_the_place(
    data: Any, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_input_data(written(tmp_path, data), BATCHING, batch_size=1, shapes={})


def test_a_missing_file_and_a_batch_of_whole_requests_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_input_data(tmp_path / "none", BATCHING, batch_size=1, shapes={})
    path = written(tmp_path, [{"categorical_features": KEYS, "numerical_features": NUMERICAL}])
    with pytest.raises(ConfigError, match="adds no batch dimension"):
        read_input_data(path, DLRM, batch_size=2, shapes={})
