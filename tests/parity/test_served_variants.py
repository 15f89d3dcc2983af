"""Every served variant answers as the NumPy reference does: of DLRM, or of the preset's model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from hpsbench.config import Suite
from hpsbench.models.dlrm import Batch, numerical_features, published_request
from hpsbench.models.kinds import kind_of
from hpsbench.models.many_tables import TableKeys
from hpsbench.models.variants import Variant, variants_of
from hpsbench.plugin import OPTIONS_KEY
from hpsbench.serving import ServedVariants

pytestmark = pytest.mark.server

#: float32 sums in another order differ by some 1e-7, and those of the many-table model, of tens of
#: thousands of products, by 1e-6. One wrong key of one sample shows by five times as much as these
#: (`test_one_wrong_key_would_show` holds that).
TOLERANCES = {"dlrm": 2e-6, "fusion": 1e-5}
#: Of what the accuracy gate measured for float16: on other samples, and a GPU rounds elsewhere.
HALF_MARGIN = 4


def dlrm_edges(suite: Suite) -> Batch:
    return Batch(edge_keys(suite), numerical_features(3, 13, seed=5))


def many_tables_edges(suite: Suite) -> TableKeys:
    keys, rows = edge_keys(suite), suite.tables.num_embeddings
    return TableKeys(np.stack([keys + i * rows for i in range(suite.fusion.num_tables)]))


def edge_keys(suite: Suite) -> np.ndarray:
    last = suite.tables.num_embeddings - 1
    keys = np.zeros((3, 26), np.int32)
    keys[1], keys[2, ::2] = last, last
    return keys


#: What each model is asked besides made-up requests.
REQUESTS: Mapping[str, Mapping[str, Callable[[Suite], Any]]] = {
    "dlrm": {
        "published sample": lambda suite: published_request(suite.tables),
        "edges of the table": dlrm_edges,
    },
    "fusion": {"edges of the tables": many_tables_edges},
}


def dlrm_with_wrong_key(batch: Batch, suite: Suite) -> Batch:
    wrong = batch.categorical.copy()
    wrong[:, 11] = (wrong[:, 11] + 1) % suite.tables.num_embeddings
    return Batch(wrong, batch.numerical)


def many_tables_with_wrong_key(batch: TableKeys, suite: Suite) -> TableKeys:
    rows, wrong = suite.tables.num_embeddings, batch.keys.copy()
    wrong[1, :, 11] = rows + (wrong[1, :, 11] + 1) % rows
    return TableKeys(wrong)


WITH_WRONG_KEY: Mapping[str, Callable[[Any, Suite], Any]] = {
    "dlrm": dlrm_with_wrong_key,
    "fusion": many_tables_with_wrong_key,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = metafunc.config.stash[OPTIONS_KEY].suite
    if "variant_name" in metafunc.fixturenames:
        metafunc.parametrize("variant_name", variants_of(suite))
    if "request_name" in metafunc.fixturenames:
        metafunc.parametrize("request_name", REQUESTS[suite.model])


def a_batch(suite: Suite, size: int, seed: int = 0) -> Any:
    seeded = dataclasses.replace(suite, load=dataclasses.replace(suite.load, seed=seed))
    return next(kind_of(suite).batches(seeded, size, "uniform"))


def answer(served: ServedVariants, variant: Variant, batch: Any, protocol: str) -> np.ndarray:
    with served.client(variant, [batch], protocol) as client:
        return client.infer()["output_1"]


def tolerance(served: ServedVariants, variant: Variant) -> float:
    if variant.precision == "float32":
        return TOLERANCES[variant.kind]
    return HALF_MARGIN * served.build.half_accuracy.max_absolute_error


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_a_served_variant_answers_as_the_numpy_reference(
    served: ServedVariants, served_variant: Variant, protocol: str, batch_size: int
) -> None:
    batch = a_batch(served.build.suite, batch_size, seed=batch_size)
    given = answer(served, served_variant, batch, protocol)
    assert given.shape == (batch_size, 1)
    assert given.dtype == np.float32
    atol = tolerance(served, served_variant)
    np.testing.assert_allclose(given, served.build.answer(batch), rtol=0, atol=atol)


def test_the_published_sample_repeated_keys_and_edges_are_answered(
    served: ServedVariants, served_variant: Variant, request_name: str
) -> None:
    suite = served.build.suite
    batch = REQUESTS[suite.model][request_name](suite)
    np.testing.assert_allclose(
        answer(served, served_variant, batch, "http"),
        served.build.answer(batch),
        rtol=0,
        atol=tolerance(served, served_variant),
    )


def test_one_wrong_key_would_show(served: ServedVariants) -> None:
    suite = served.build.suite
    batch = a_batch(suite, 1024)
    wrong = WITH_WRONG_KEY[suite.model](batch, suite)
    change = np.abs(served.build.answer(wrong) - served.build.answer(batch))
    assert np.quantile(change, 0.01) > 5 * TOLERANCES[suite.model]
    for variant in served.build.variants:
        # Float16 hides the wrong key of one sample in fifteen, and of a batch none.
        if variant.precision == "float16":
            assert np.mean(change > tolerance(served, variant)) > 0.8
