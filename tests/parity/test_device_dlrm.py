"""DLRM on a GPU in this process, for batches of one part and of several, with either engine."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpsbench.config import DlrmConfig
from hpsbench.hps.configuration import Configuration, ModelConfiguration, write_configuration
from hpsbench.hps.lookup import ModelTables, open_model
from hpsbench.hps.sparse_model import write_sparse_model
from hpsbench.models.dlrm import forward, numerical_features, seeded_weights
from hpsbench.models.onnx_engine import EngineOptions
from hpsbench.servers.backend.batch_parts import LARGEST
from hpsbench.servers.backend.cuda import is_page_locked
from hpsbench.servers.backend.dense_engines import (
    DenseEngine,
    WholeEngine,
    fused_engine,
    onnx_engine,
)
from hpsbench.servers.backend.device_dlrm import DeviceDlrm, Shape
from hpsbench.servers.backend.device_resources import DeviceResources

pytestmark = pytest.mark.gpu

ROWS, DIM = 5000, 128
DLRM = DlrmConfig(bottom_mlp=(64,), top_mlp=(64, 1))
MOST = 3 * LARGEST
#: One part, in the least bucket and the largest; several, the last of them smaller; more than
#: there is memory for at once.
BATCH_SIZES = (1, 32, 1000, LARGEST, LARGEST + 1, 2 * LARGEST + 1000, MOST, MOST + LARGEST + 5)
#: What runs it, by what is asked for.
DESCRIPTIONS = {
    "fused layers": r"cuBLASLt [\d.]+{}, fused layers, fused interaction",
    "fused interaction": r"ONNX Runtime [\d.]+, CUDA{}, fused interaction",
    "whole": r"ONNX Runtime [\d.]+, CUDA{}",
}
#: A wrong sample is off by some 0.1; half precision by 1e-3.
TOLERANCES = {"float32": 1e-5, "float16": 2e-3}


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (ROWS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def tables(rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> ModelTables:
    folder: Path = tmp_path_factory.mktemp("device_dlrm")
    write_sparse_model(folder / "table", np.arange(ROWS), [rows])
    model = ModelConfiguration(
        model="dlrm",
        sparse_files=(str(folder / "table"),),
        embedding_vecsize_per_table=(DIM,),
        maxnum_catfeature_query_per_table_per_sample=(DLRM.num_slots,),
        default_value_for_each_table=(0.0,),
        deployed_device_list=(0,),
        max_batch_size=MOST,
        gpucacheper=1.0,
    )
    path = write_configuration(folder / "ps.json", Configuration(models=(model,)))
    return open_model(path, "dlrm", gpus=True)


@pytest.fixture(scope="module")
def models() -> dict[str, object]:
    from hpsbench.models.keras_dlrm import dense_model
    from hpsbench.models.onnx import convert, half_precision

    single = convert(dense_model(DLRM, seeded_weights(DLRM, DIM), DIM, multiple=8))
    return {"float32": single, "float16": half_precision(single)}


@pytest.fixture(scope="module")
def batch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, numerical features, and what they are answered with."""
    keys = np.random.default_rng(1).integers(ROWS, size=(max(BATCH_SIZES), DLRM.num_slots))
    numerical = numerical_features(len(keys), DLRM.num_numerical, seed=2)
    weights = seeded_weights(DLRM, DIM)
    answers = [
        forward(weights, rows[keys[some]], numerical[some])
        for some in (slice(first, first + 4096) for first in range(0, len(keys), 4096))
    ]
    return keys.astype(np.int32), numerical, np.concatenate(answers)


@pytest.fixture
def resources() -> Iterator[DeviceResources]:
    with DeviceResources(0) as resources:
        yield resources


def page_locked(array: np.ndarray, resources: DeviceResources) -> np.ndarray:
    """Return a copy that the GPU reads by itself."""
    copy = resources.page_locked(array.nbytes).view(array.dtype, array.shape, 0)
    copy[:] = array
    return copy


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("kind", list(DESCRIPTIONS))
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_a_batch_of_any_size_is_answered_as_numpy_does(
    resources: DeviceResources,
    tables: ModelTables,
    models: dict[str, object],
    batch: tuple[np.ndarray, np.ndarray, np.ndarray],
    dtype: str,
    kind: str,
    graphs: bool,
) -> None:
    stream = resources.stream()
    options = EngineOptions(
        device=0,
        stream=stream.handle,
        cuda_graphs=graphs,
        tensor_float_32=False,
        half_precision=dtype == "float16",
    )
    model = models[dtype]
    engine: DenseEngine | None
    if kind == "whole":
        engine = WholeEngine(onnx_engine(model.SerializeToString(), options, resources))
    else:
        layers = kind == "fused layers"
        engine = fused_engine(model, options, resources, LARGEST, fused_layers=layers)
        assert engine is not None
    assert re.fullmatch(DESCRIPTIONS[kind].format(", CUDA graphs" * graphs), engine.description)
    shape = Shape(slots=DLRM.num_slots, features=DLRM.num_numerical, dim=DIM)
    dlrm = DeviceDlrm(
        tables, engine, resources, stream, shape, vector_dtype=dtype, max_batch_size=MOST
    )
    keys, numerical, expected = batch
    locked = page_locked(keys, resources), page_locked(numerical, resources)
    assert is_page_locked(locked[0])
    assert not is_page_locked(keys)
    sizes = (*BATCH_SIZES, *BATCH_SIZES[::-1])
    for size, (of_keys, of_numerical) in itertools.product(sizes, ((keys, numerical), locked)):
        given = dlrm(of_keys[-size:], of_numerical[-size:])
        np.testing.assert_allclose(
            given, expected[-size:], rtol=0, atol=TOLERANCES[dtype], err_msg=f"batch {size}"
        )
