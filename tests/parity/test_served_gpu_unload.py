"""A model in Triton's process that is unloaded gives the GPU's memory back, as NVML tells it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pynvml
import pytest
from recached_models import CACHES, copy_models
from test_served_variants import a_batch, tolerance

from hpsbench.errors import ServerError
from hpsbench.load.client import connect
from hpsbench.models.build import build_repository
from hpsbench.models.dlrm import Batch
from hpsbench.models.variants import Variant, select_variants
from hpsbench.presets import load_suite
from hpsbench.servers.triton import TritonServer, running_triton
from hpsbench.serving import ServedVariants

pytestmark = [pytest.mark.server, pytest.mark.gpu]

MODELS = ("hps_onnx_fp32", "hps_onnx_fp16")
#: Rows of 102 MB, and memory for 32,768 samples: two parts, hence 436 MB of float32 vectors.
ROWS, MOST = 200_000, 32_768
CYCLES = 5
SLACK = 24 << 20
#: Of a large batch's answers.
CHECKED = 300


@pytest.fixture(scope="module", params=[True, False], ids=["cuBLASLt", "ONNX Runtime"])
def served(request: pytest.FixtureRequest, work_folder: Path) -> Iterator[ServedVariants]:
    """A Triton with the ONNX variants, of which `fused_layers` is on or off."""
    suite = load_suite("smoke")
    suite = dataclasses.replace(
        suite,
        tables=dataclasses.replace(suite.tables, num_embeddings=ROWS),
        servers=dataclasses.replace(suite.servers, fused_layers=request.param),
        load=dataclasses.replace(suite.load, batch_sizes=(64, MOST)),
    )
    folder = work_folder / f"gpu-unload-{request.param}"
    build = build_repository(suite, select_variants(list(MODELS), suite), folder)
    for cache in ("part", "static"):
        copy_models(build.repository.root, MODELS, cache, CACHES[cache])
    copy_models(
        build.repository.root, MODELS[:1], "homeless", {"sparse_files": (str(folder / "nowhere"),)}
    )
    # Fails when the tables are on the GPU.
    broken = copy_models(build.repository.root, MODELS[:1], "broken", {})[MODELS[0]]
    model = next((build.repository.root / broken).rglob("model.onnx"))
    model.unlink()
    model.write_bytes(b"no model")
    log = folder / "triton.log"
    with running_triton(build.repository.root, [], suite.servers, log=log) as server:
        yield ServedVariants(build, server)


@pytest.fixture(scope="module", autouse=True)
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    yield
    pynvml.nvmlShutdown()


def used_bytes() -> int:
    """Return what is taken of GPU 0's memory, by whomever."""
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)


def variant_of(served: ServedVariants, model: str) -> Variant:
    return next(v for v in served.build.variants if model.startswith(v.name))


def check_answers(served: ServedVariants, model: str, size: int = 300) -> None:
    variant = variant_of(served, model)
    batch = a_batch(served.build.suite, size, seed=size)
    endpoint = served.server.endpoint(model)
    with connect(endpoint, [variant.inputs(batch)], protocol="http", timeout_s=60) as client:
        given = client.infer()["output_1"]
    assert given.shape == (size, 1)
    some = Batch(batch.categorical[:CHECKED], batch.numerical[:CHECKED])
    atol, expected = tolerance(served, variant), served.build.answer(some)
    np.testing.assert_allclose(given[:CHECKED], expected, rtol=0, atol=atol)


def unload(server: TritonServer, model: str) -> None:
    """Unload a model, and return when Triton says that it has gone."""
    server.unload(model)
    deadline = time.monotonic() + 30
    while server.models()[model] != "UNAVAILABLE: unloaded":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cycle(served: ServedVariants, model: str) -> tuple[int, int]:
    """Load, ask and unload a model; return what it took, and what is taken after it."""
    before = used_bytes()
    served.server.load(model)
    check_answers(served, model)
    check_answers(served, model, MOST)
    taken = used_bytes() - before
    unload(served.server, model)
    return taken, used_bytes()


@pytest.mark.parametrize("cache", ["", "_part", "_static"])
@pytest.mark.parametrize("model", MODELS)
def test_memory_is_given_back(served: ServedVariants, model: str, cache: str) -> None:
    # The context, kernels, and what libraries keep.
    cycle(served, model + cache)
    before = cycle(served, model + cache)[1]
    found = [cycle(served, model + cache) for _ in range(CYCLES)]
    print(f"\n{model}{cache}: before {before}, (taken, after) {found}")
    assert min(taken for taken, _ in found) > 200 << 20
    assert all(abs(after - before) < SLACK for _, after in found)


def test_a_load_that_fails_leaves_nothing(served: ServedVariants) -> None:
    model = MODELS[0]
    before = [cycle(served, model) for _ in range(2)][-1][1]
    for name, words in (("homeless", "is not a folder"), ("broken", "model.onnx")):
        for _ in range(CYCLES):
            with pytest.raises(ServerError, match=words):
                served.server.load(f"{model}_{name}")
    assert abs(used_bytes() - before) < SLACK
    cycle(served, model)


def test_loaded_anew_it_leaves_the_old_one(served: ServedVariants) -> None:
    model = MODELS[1]
    code = next((served.build.repository.root / model).rglob("model.py"))
    served.server.load(model)
    after = []
    for _ in range(CYCLES + 2):
        code.touch()  # Triton leaves a model as it is whose files nobody has written
        served.server.load(model)
        check_answers(served, model)
        time.sleep(2)  # the old one goes in the background
        after.append(used_bytes())
    print(f"\nanew: {after}")
    assert all(abs(used - after[1]) < SLACK for used in after[2:])
    unload(served.server, model)


def test_another_model_answers_while_one_comes_and_goes(served: ServedVariants) -> None:
    still, moving = MODELS
    served.server.load(still)
    over = Event()

    def ask(size: int) -> int:
        answered = 0
        while not over.is_set():
            check_answers(served, still, size)
            answered += 1
        return answered

    with ThreadPoolExecutor(3) as pool:
        asking = pool.map(ask, (1, 500, MOST))
        try:
            for _ in range(CYCLES):
                served.server.load(moving)
                check_answers(served, moving)
                unload(served.server, moving)
        finally:
            over.set()
        assert min(asking) > 0
    unload(served.server, still)
