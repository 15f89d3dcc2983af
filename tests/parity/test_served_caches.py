"""Every variant with the parameter server answers alike, whichever way a GPU caches its tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from recached_models import CACHES, copy_models
from test_served_variants import a_batch, dlrm_edges, tolerance

from hpsbench.load.client import connect
from hpsbench.models.build import build_repository
from hpsbench.models.kinds import Batch
from hpsbench.models.variants import Variant, select_variants
from hpsbench.presets import load_suite
from hpsbench.servers.triton import running_triton
from hpsbench.serving import ServedVariants

pytestmark = [pytest.mark.server, pytest.mark.gpu]

VARIANTS = ("hps_tf", "hps_ensemble", "hps_onnx_fp32", "hps_onnx_fp16")
#: The models that ask the parameter server.
WITH_LOOKUP = ("hps_tf", "hps_ensemble_lookup", "hps_onnx_fp32", "hps_onnx_fp16")
#: Models tell of their lookups twice a second at most, when they answer.
TELLING_S = 0.6
#: It has no lookup: the ensembles of all caches share it.
DENSE = "hps_ensemble_dense"


@pytest.fixture(scope="module")
def served(work_folder: Path) -> Iterator[ServedVariants]:
    """One Triton with every variant, once for each cache: `hps_tf_static`, ..."""
    suite = load_suite("smoke", ["servers.startup_timeout_s=300"])
    folder = work_folder / "caches"
    build = build_repository(suite, select_variants(VARIANTS, suite), folder)
    copied = [m for v in build.variants for m in v.models if m != DENSE]
    models = [DENSE]
    for name, options in CACHES.items():
        models += copy_models(build.repository.root, copied, name, options).values()
    log = folder / "triton.log"
    with running_triton(build.repository.root, models, suite.servers, log=log) as server:
        yield ServedVariants(build, server)


@pytest.fixture(scope="module")
def asked(served: ServedVariants) -> list[tuple[Batch, np.ndarray]]:
    """Batches, some of them twice, and what every variant must answer."""
    suite = served.build.suite
    batches = [a_batch(suite, size, seed=size) for size in (1, 7, 1024)] + [dlrm_edges(suite)]
    answered = [(batch, served.build.answer(batch)) for batch in batches]
    return [*answered, *answered]


def answer(served: ServedVariants, variant: Variant, cache: str, batch: Batch) -> np.ndarray:
    endpoint = served.server.endpoint(f"{variant.name}_{cache}")
    with connect(endpoint, [variant.inputs(batch)], protocol="http", timeout_s=60) as client:
        return client.infer()["output_1"]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("variant_name", VARIANTS)
def test_a_variant_answers_as_the_numpy_reference_with_any_cache(
    served: ServedVariants, asked: list[tuple[Batch, np.ndarray]], variant_name: str, cache: str
) -> None:
    variant = next(v for v in served.build.variants if v.name == variant_name)
    atol = tolerance(served, variant)
    for batch, expected in asked:
        given = answer(served, variant, cache, batch)
        np.testing.assert_allclose(given, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("cache", CACHES)
def test_keys_are_found_in_the_cache_on_the_gpu(served: ServedVariants, cache: str) -> None:
    batch = a_batch(served.build.suite, 512, seed=3)
    for _ in range(2):
        for variant in served.build.variants:
            answer(served, variant, cache, batch)
        time.sleep(TELLING_S)
    for variant in served.build.variants:
        (asked,) = (f"{model}_{cache}" for model in variant.models if model in WITH_LOOKUP)
        found = served.server.lookups()[asked]["GPU 0 cache"]
        assert found.keys >= 512 * 26
        assert 0 < found.hits <= found.keys
        assert found.hits == found.keys or cache == "part"
