"""The many-table model through Triton: fused and unfused answer alike, and are what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorflow.core.protobuf import saved_model_pb2

from hpsbench.hps.configuration import read_configuration
from hpsbench.models.build import build_repository
from hpsbench.models.variants import select_variants
from hpsbench.presets import load_suite
from hpsbench.serving import ServedVariants, request_batches, served_variants

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def served_fusion(work_folder: Path) -> Iterator[ServedVariants]:
    suite = load_suite("fusion-8", ["load.keys=uniform", "tables.embedding_dim=16"])
    folder = work_folder / "served-fusion"
    build = build_repository(suite, select_variants([], suite), folder)
    with served_variants(build, log=folder / "triton.log") as served:
        yield served


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_both_answer_as_numpy_and_each_other(served_fusion: ServedVariants, protocol: str) -> None:
    batch = request_batches(served_fusion.build.suite, 32)[1]
    answers = {}
    for variant in served_fusion.build.variants:
        with served_fusion.client(variant, [batch], protocol) as client:
            answers[variant.name] = client.infer()["output_1"]
    assert list(answers) == ["unfused", "fused"]
    expected = served_fusion.build.answer(batch)
    np.testing.assert_allclose(answers["unfused"], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(answers["fused"], answers["unfused"])


@pytest.mark.parametrize(
    ("variant", "operations", "stored_as_one"),
    [("unfused", {"HpsLookup": 8}, False), ("fused", {"HpsConcatLookup": 1}, True)],
)
def test_only_the_fused_export_has_one_operation_on_fused_storage(
    served_fusion: ServedVariants, variant: str, operations: dict[str, int], stored_as_one: bool
) -> None:
    build = served_fusion.build
    saved = build.repository.version_folder(variant) / "model.savedmodel" / "saved_model.pb"
    graph = saved_model_pb2.SavedModel()
    graph.ParseFromString(saved.read_bytes())
    serving = [
        f for f in graph.meta_graphs[0].graph_def.library.function if "_serve_" in f.signature.name
    ]
    lookups = [n for n in serving[0].node_def if n.op.startswith("Hps")]
    assert Counter(n.op for n in lookups) == operations
    (config_file,) = {n.attr["ps_config_file"].s.decode() for n in lookups}
    configuration = read_configuration(config_file)
    assert configuration.fuses(configuration.models[0]) is stored_as_one
