"""The many-table model answers alike, fused and unfused, whichever way a GPU caches its tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from recached_models import CACHES, copy_models
from test_served_variants import TOLERANCES, many_tables_edges

from hpsbench.load.client import connect
from hpsbench.models.build import build_repository
from hpsbench.models.many_tables import TableKeys
from hpsbench.models.variants import select_variants
from hpsbench.presets import load_suite
from hpsbench.servers.triton import running_triton
from hpsbench.serving import ServedVariants, request_batches

pytestmark = [pytest.mark.server, pytest.mark.gpu]

SUITE = load_suite(
    "fusion-8",
    [
        "load.keys=uniform",
        "tables.embedding_dim=16",
        "hps.hit_rate_threshold=1.0",
        "servers.tensor_float_32=false",
        "servers.startup_timeout_s=300",
    ],
)
VARIANTS = ("unfused", "fused")


@pytest.fixture(scope="module")
def served(work_folder: Path) -> Iterator[ServedVariants]:
    """One Triton with both variants, once for each cache: `fused_static`, ..."""
    folder = work_folder / "fusion-caches"
    build = build_repository(SUITE, select_variants(VARIANTS, SUITE), folder)
    models: list[str] = []
    for name, options in CACHES.items():
        models += copy_models(build.repository.root, VARIANTS, name, options).values()
    log = folder / "triton.log"
    with running_triton(build.repository.root, models, SUITE.servers, log=log) as server:
        yield ServedVariants(build, server)


@pytest.fixture(scope="module")
def asked(served: ServedVariants) -> list[tuple[TableKeys, np.ndarray]]:
    """Batches, twice, and what both variants must answer."""
    batches = [request_batches(SUITE, size)[1] for size in (1, 32, 256)]
    batches.append(many_tables_edges(SUITE))
    answered = [(batch, served.build.answer(batch)) for batch in batches]
    return [*answered, *answered]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("variant_name", VARIANTS)
def test_a_variant_answers_as_the_numpy_reference_with_any_cache(
    served: ServedVariants,
    asked: list[tuple[TableKeys, np.ndarray]],
    variant_name: str,
    cache: str,
) -> None:
    (variant,) = select_variants([variant_name], SUITE)
    endpoint = served.server.endpoint(f"{variant_name}_{cache}")
    inputs = [variant.inputs(batch) for batch, _ in asked]
    with connect(endpoint, inputs, protocol="http", timeout_s=60) as client:
        for _, expected in asked:
            given = client.infer()["output_1"]
            np.testing.assert_allclose(given, expected, rtol=0, atol=TOLERANCES["fusion"])
