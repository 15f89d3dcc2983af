"""The configuration files that Triton reads, against reviewed copies in `tests/golden/repository`.

After an intended change: `HPSBENCH_GOLDEN=write pytest tests/unit/test_model_repository.py`, then
read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpsbench.models.kinds.dlrm import DlrmBuild, ps_configuration
from hpsbench.models.repository import EnsembleStep, ModelRepository, TensorSpec
from hpsbench.models.triton_models import OUTPUT_SPECS, feature_specs, feature_warm_up
from hpsbench.models.variants import (
    default_variants,
    hps_onnx_fp16,
    native_tf_hybrid,
    registered_variants,
    select_variants,
    variants_of,
)
from hpsbench.presets import load_suite

GOLDEN = Path(__file__).parents[1] / "golden" / "repository"


def compare(name: str, text: str) -> None:
    golden = GOLDEN / name
    if os.environ.get("HPSBENCH_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_python_model_s_configuration(tmp_path: Path) -> None:
    suite = load_suite("laptop")
    ModelRepository(tmp_path).add_python_model(
        "hps_tf",
        "tensorflow_model",
        feature_specs(suite),
        OUTPUT_SPECS,
        {"import": "hpsbench.hps"},
        warm_up=feature_warm_up(suite),
    )
    compare("python_model.pbtxt", (tmp_path / "hps_tf" / "config.pbtxt").read_text())
    model = (tmp_path / "hps_tf" / "1" / "model.py").read_text()
    assert "from hpsbench.servers.backend.tensorflow_model import TritonPythonModel" in model


def test_an_ensemble_s_configuration(tmp_path: Path) -> None:
    spec = TensorSpec("x", "TYPE_FP32", (-1,))
    ModelRepository(tmp_path).add_ensemble(
        "both",
        [spec],
        [TensorSpec("z", "TYPE_FP32", (-1,))],
        [
            EnsembleStep("first", {"x": "x"}, {"y": "between"}),
            EnsembleStep("second", {"y": "between"}, {"z": "z"}),
        ],
    )
    compare("ensemble.pbtxt", (tmp_path / "both" / "config.pbtxt").read_text())


def test_every_variant_names_its_models_and_times_them() -> None:
    variants = registered_variants()
    assert next(iter(variants)) == "native_tf"
    for name, variant in variants.items():
        assert variant.name == name
        assert variant.models[-1] == name, "the model that clients ask is loaded last"
        assert set(variant.timed_models) <= set(variant.models)


def test_an_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(Exception, match=r"unknown variant 'hps_ft'") as caught:
        select_variants(["native_tf", "hps_ft"])
    assert "did you mean hps_tf?" in str(caught.value)


def test_variants_keep_the_order_of_the_tables_whatever_order_they_are_asked_in() -> None:
    assert [v.name for v in select_variants(["hps_tf", "native_tf"])] == ["native_tf", "hps_tf"]


def test_what_cannot_differ_without_a_gpu_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variant in (hps_onnx_fp16, native_tf_hybrid):
        monkeypatch.setattr(variant, "find_gpus", lambda: ())
    suite = load_suite("laptop")
    measured, reasons = default_variants(suite)
    assert reasons["native_tf_hybrid"] == "without a GPU it is native_tf"
    assert "casts float16 to float32" in reasons["hps_onnx_fp16"]
    names = {variant.name for variant in measured}
    assert {"native_tf", "hps_tf", "hps_ensemble", "hps_onnx_fp32"} <= names
    assert names | set(reasons) == set(variants_of(suite))
    assert not names & set(reasons)
    for variant in (hps_onnx_fp16, native_tf_hybrid):
        monkeypatch.setattr(variant, "find_gpus", lambda: ("a GPU",))
    assert not default_variants(suite)[1]


def test_the_parameter_server_is_configured_for_the_suite(tmp_path: Path) -> None:
    suite = load_suite("laptop", ["hps.gpucacheper=0.5"])
    model = ps_configuration(DlrmBuild(suite, tmp_path, ModelRepository(tmp_path))).models[0]
    assert model.embedding_vecsize_per_table == (128,)
    assert model.maxnum_catfeature_query_per_table_per_sample == (26,)
    assert model.max_batch_size == 4096
    assert model.gpucacheper == 0.5
