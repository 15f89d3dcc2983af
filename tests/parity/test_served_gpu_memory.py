"""A served model that finds too little GPU memory says so, and loads when there is some."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from recached_models import copy_models
from test_served_variants import a_batch, tolerance

from hpsbench.errors import ServerError
from hpsbench.load.client import connect
from hpsbench.models.build import build_repository
from hpsbench.models.variants import select_variants
from hpsbench.presets import load_suite
from hpsbench.servers.triton import running_triton
from hpsbench.serving import ServedVariants
from tests.native.held_gpu_memory import held_gpu_memory

pytestmark = [pytest.mark.server, pytest.mark.gpu]

#: What is left free: TensorFlow finds enough to start, and the cache not the 4 GiB that it takes
#: for lookups of as large batches.
LEFT = 3 << 30
LARGE_BATCHES = {"max_batch_size": 10_000_000}
LOOKUP, TENSORFLOW = "hps_ensemble_lookup", "hps_tf"
#: What comes and goes on a GPU beside the models.
SLACK = 256 << 20


@pytest.fixture(scope="module")
def served(work_folder: Path) -> Iterator[ServedVariants]:
    """A Triton with the lookup model; others, for large batches, can be loaded."""
    suite = load_suite("smoke")
    folder = work_folder / "gpu-memory"
    build = build_repository(suite, select_variants(["hps_tf", "hps_ensemble"], suite), folder)
    copy_models(build.repository.root, [LOOKUP, TENSORFLOW], "large", LARGE_BATCHES)
    log = folder / "triton.log"
    with running_triton(build.repository.root, [LOOKUP], suite.servers, log=log) as server:
        yield ServedVariants(build, server)


def vectors(served: ServedVariants, model: str) -> np.ndarray:
    """Return what a lookup model answers, after it was compared with the table."""
    batch = a_batch(served.build.suite, 9)
    variant = next(v for v in served.build.variants if v.name == "hps_ensemble")
    inputs = {k: v for k, v in variant.inputs(batch).items() if k in ("KEYS", "NUMKEYS")}
    with connect(served.server.endpoint(model), [inputs], protocol="http", timeout_s=60) as client:
        found = client.infer()["OUTPUT0"]
    np.testing.assert_array_equal(found, served.build.rows(batch.categorical).reshape(-1))
    return found


@pytest.mark.parametrize("model", [TENSORFLOW, LOOKUP])
def test_too_little_memory_is_told_and_the_server_goes_on(
    served: ServedVariants, model: str
) -> None:
    server, large = served.server, f"{model}_large"
    vectors(served, LOOKUP)
    with held_gpu_memory(LEFT) as held:
        before = held.free_bytes()
        with pytest.raises(ServerError) as caught:
            server.load(large)
        told = str(caught.value)
        needed = re.search(r"model dlrm needs about (\d+\.\d+) GiB of GPU 0 ", told)
        assert needed is not None, told
        assert float(needed[1]) * (1 << 30) > LEFT
        assert "lookups of 260000000 keys: CUDA failed to take " in told
        assert "bytes of GPU memory: out of memory; GPU 0 had " in told
        assert "lower gpucacheper, or max_batch_size" in told
        assert server.models()[large].startswith("UNAVAILABLE")
        # The others answer as before, and what was tried takes nothing any more.
        vectors(served, LOOKUP)
        deadline = time.monotonic() + 10  # its process has yet to end
        while held.free_bytes() < before - SLACK:
            assert time.monotonic() < deadline, (before, held.free_bytes())
            time.sleep(0.1)
        held.release()
    server.load(large)
    if model == LOOKUP:
        vectors(served, large)
    else:
        check_answers(served, large)
    server.unload(large)


def check_answers(served: ServedVariants, model: str) -> None:
    (variant,) = (v for v in served.build.variants if v.name == TENSORFLOW)
    batch = a_batch(served.build.suite, 33)
    endpoint = served.server.endpoint(model)
    with connect(endpoint, [variant.inputs(batch)], protocol="http", timeout_s=60) as client:
        given = client.infer()["output_1"]
    atol = tolerance(served, variant)
    np.testing.assert_allclose(given, served.build.answer(batch), rtol=0, atol=atol)
