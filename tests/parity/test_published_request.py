"""The published sample request, as printed, in its own key space of 32,709,138 rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpsbench.config import Suite
from hpsbench.forecast import free_memory, places_of, require
from hpsbench.models.build import build_repository
from hpsbench.models.dlrm import PUBLISHED_KEYS, published_request
from hpsbench.models.variants import select_variants, variants_of
from hpsbench.plugin import OPTIONS_KEY
from hpsbench.presets import load_suite
from hpsbench.serving import ServedVariants, served_variants

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def full_key_space(pytestconfig: pytest.Config) -> Suite:
    """Every published row, four floats wide instead of 128, so that any machine holds them."""
    wide = load_suite("criteo").tables.num_embeddings
    return load_suite(
        "smoke",
        [
            f"tables.num_embeddings={wide}",
            "tables.embedding_dim=4",
            f"servers.triton={pytestconfig.stash[OPTIONS_KEY].suite.servers.triton}",
        ],
    )


@pytest.fixture(scope="module")
def served_in_full(full_key_space: Suite, work_folder: Path) -> Iterator[ServedVariants]:
    variants = select_variants([], full_key_space)
    require(full_key_space, places_of(full_key_space, [v.name for v in variants]), free_memory())
    folder = work_folder / "full-key-space"
    build = build_repository(full_key_space, variants, folder)
    with served_variants(build, log=folder / "triton.log") as served:
        yield served


@pytest.mark.parametrize("variant_name", variants_of(load_suite("smoke")))
def test_the_published_sample_request_is_answered_as_printed(
    served_in_full: ServedVariants, variant_name: str
) -> None:
    batch = published_request(served_in_full.build.suite.tables)
    assert tuple(batch.categorical[0]) == PUBLISHED_KEYS
    variant = next(v for v in served_in_full.build.variants if v.name == variant_name)
    with served_in_full.client(variant, [batch]) as client:
        answer = client.infer()["output_1"]
    half = variant.precision == "float16"
    atol = 4 * served_in_full.build.half_accuracy.max_absolute_error if half else 2e-6
    np.testing.assert_allclose(answer, served_in_full.build.answer(batch), rtol=0, atol=atol)
