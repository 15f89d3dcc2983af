"""A model in Triton's process that is unloaded gives back what it took; requests never hang."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import psutil
import pytest
import tritonclient.http as triton_http
from recached_models import copy_models
from test_served_variants import TOLERANCES, a_batch
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from hpsbench.config import Suite
from hpsbench.errors import ServerError
from hpsbench.models.build import build_repository
from hpsbench.models.variants import Variant, select_variants
from hpsbench.presets import load_suite
from hpsbench.servers.triton import running_triton
from hpsbench.serving import ServedVariants

pytestmark = pytest.mark.server

MODEL = "hps_onnx_fp32"
#: What the first loads take once: imports, Triton's own, ONNX Runtime's environment.
FIRST, CYCLES = 4, 12
#: The weights alone take 9 MB, of each model that stays.
SLACK = 20 << 20


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite("smoke")


@pytest.fixture(scope="module")
def served(suite: Suite, work_folder: Path) -> Iterator[ServedVariants]:
    """A Triton with an ONNX variant, and one that cannot be loaded beside it."""
    folder = work_folder / "unload"
    build = build_repository(suite, select_variants([MODEL], suite), folder)
    copy_models(
        build.repository.root, [MODEL], "homeless", {"sparse_files": (str(folder / "nowhere"),)}
    )
    broken = copy_models(build.repository.root, [MODEL], "broken", {})[MODEL]
    # Fails when the tables are open.
    model = next((build.repository.root / broken).rglob("model.onnx"))
    model.unlink()
    model.write_bytes(b"no model")
    log = folder / "triton.log"
    with running_triton(build.repository.root, [MODEL], suite.servers, log=log) as server:
        yield ServedVariants(build, server)


def variant_of(served: ServedVariants) -> Variant:
    (variant,) = served.build.variants
    return variant


def check_answers(served: ServedVariants, size: int = 1000) -> None:
    batch = a_batch(served.build.suite, size, seed=size)
    with served.client(variant_of(served), [batch]) as client:
        given = client.infer()["output_1"]
    np.testing.assert_allclose(given, served.build.answer(batch), rtol=0, atol=TOLERANCES["dlrm"])


def unload(served: ServedVariants) -> None:
    """Unload the model, and return when Triton says that it has gone."""
    served.server.unload(MODEL)
    eventually(lambda: served.server.models()[MODEL] == "UNAVAILABLE: unloaded")


def eventually(holds: Callable[[], bool]) -> None:
    """Fail unless `holds` within 10 s."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def held(served: ServedVariants) -> dict[str, int]:
    """Return what the server's process holds: memory, threads, and maps of the model's rows."""
    process = psutil.Process(served.server.pid)
    return {
        "memory": process.memory_info().rss,
        "threads": process.num_threads(),
        "rows": sum("emb_vector" in part.path for part in process.memory_maps(grouped=False)),
    }


def least_memory(found: Sequence[Mapping[str, int]]) -> int:
    """Return what is held at the least: what threads keep of a request's comes and goes."""
    return min(after["memory"] for after in found)


def cycle(served: ServedVariants) -> dict[str, int]:
    """Load the model, ask it, unload it; return what is held then."""
    served.server.load(MODEL)
    check_answers(served)
    unload(served)
    return held(served)


def test_memory_threads_and_maps_are_given_back(served: ServedVariants) -> None:
    unload(served)
    before = [cycle(served) for _ in range(FIRST)]
    found = [cycle(served) for _ in range(CYCLES)]
    print("\n", before, found)
    assert [after["rows"] for after in found] == [0] * CYCLES
    assert max(after["threads"] for after in found) <= before[-1]["threads"]
    assert least_memory(found[CYCLES // 2 :]) < least_memory(before) + SLACK
    # One that is loaded shows.
    served.server.load(MODEL)
    loaded = held(served)
    assert loaded["rows"] > 0
    assert loaded["memory"] > least_memory(found) + (9 << 20)


def test_loaded_anew_it_leaves_the_old_one(served: ServedVariants) -> None:
    code = next((served.build.repository.root / MODEL).rglob("model.py"))

    def anew() -> dict[str, int]:
        code.touch()  # Triton leaves a model as it is whose files nobody has written
        served.server.load(MODEL)
        check_answers(served)
        eventually(lambda: held(served)["rows"] == rows)
        return held(served)

    served.server.load(MODEL)
    rows = held(served)["rows"]
    before = [anew() for _ in range(FIRST)]
    found = [anew() for _ in range(CYCLES)]
    print("\n", before, found)
    assert least_memory(found[CYCLES // 2 :]) < least_memory(before) + SLACK
    eventually(lambda: held(served)["threads"] <= before[-1]["threads"])


def test_a_load_that_fails_leaves_nothing(served: ServedVariants) -> None:
    unload(served)
    before = [cycle(served) for _ in range(FIRST)]
    for name, words in (("homeless", "is not a folder"), ("broken", "model.onnx")):
        for _ in range(CYCLES // 2):
            with pytest.raises(ServerError, match=words):
                served.server.load(f"{MODEL}_{name}")
    after = [held(served), cycle(served)]
    assert [a["rows"] for a in after] == [0, 0]
    assert max(a["threads"] for a in after) <= before[-1]["threads"]
    assert least_memory(after) < least_memory(before) + SLACK
    served.server.load(MODEL)
    check_answers(served)


def test_requests_meanwhile_are_answered_or_refused(served: ServedVariants) -> None:
    served.server.load(MODEL)
    batch = a_batch(served.build.suite, 2000)
    expected = served.build.answer(batch)
    over = Event()

    def ask(_: int) -> tuple[int, set[str]]:
        answered, refused = 0, set()
        inputs = [
            triton_http.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            for name, array in variant_of(served).inputs(batch).items()
        ]
        for tensor, array in zip(inputs, variant_of(served).inputs(batch).values(), strict=True):
            tensor.set_data_from_numpy(array)
        with triton_http.InferenceServerClient(served.server.http, network_timeout=30) as client:
            while not over.is_set():
                try:
                    given = client.infer(MODEL, inputs).as_numpy("output_1")
                except InferenceServerException as error:
                    refused.add(str(error.message()))
                    time.sleep(0.01)
                else:
                    np.testing.assert_allclose(given, expected, rtol=0, atol=TOLERANCES["dlrm"])
                    answered += 1
        return answered, refused

    with ThreadPoolExecutor(4) as pool:
        asking = pool.map(ask, range(4))
        try:
            for number in range(CYCLES):
                time.sleep(0.1)
                served.server.unload(MODEL)
                time.sleep(0.1 * (number % 2))  # else the new one comes before the old one is gone
                served.server.load(MODEL)
        finally:
            over.set()
        found = list(asking)
    assert all(answered for answered, _ in found)
    words = set().union(*(refused for _, refused in found))
    assert words, "no request met an unloaded model"
    assert all("unknown model" in word or "not ready" in word for word in words), words
    check_answers(served)
