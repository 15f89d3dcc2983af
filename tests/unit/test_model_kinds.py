"""Which model a suite serves, what its variants are exported from, and what they are asked."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hpsbench.baselines import load as load_baselines
from hpsbench.errors import ConfigError
from hpsbench.forecast import host_bytes
from hpsbench.models import triton_models, variants
from hpsbench.models.build import build_repository
from hpsbench.models.kinds import kind_of
from hpsbench.models.kinds.dlrm import DlrmBuild
from hpsbench.models.kinds.fusion import ManyTablesBuild, ps_configuration
from hpsbench.models.many_tables import TableKeys
from hpsbench.models.repository import ModelRepository
from hpsbench.models.variants import default_variants, select_variants, unfused, variants_of
from hpsbench.presets import load_suite, preset_names
from hpsbench.serving import request_batches
from hpsbench.workload import workload_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "repository" / "many_tables.pbtxt"
FUSION = load_suite("fusion-8")
#: Three tables of four rows, two keys of each per sample.
TINY = load_suite(
    "fusion-8",
    [
        "fusion.num_tables=3",
        "fusion.hotness=2",
        "tables.num_embeddings=4",
        "tables.embedding_dim=2",
    ],
)


@pytest.mark.parametrize(
    ("preset", "model", "reference", "build"),
    [
        ("smoke", "dlrm", "native_tf", DlrmBuild),
        ("criteo", "dlrm", "native_tf", DlrmBuild),
        ("fusion-8", "fusion", "unfused", ManyTablesBuild),
        ("fusion-100", "fusion", "unfused", ManyTablesBuild),
    ],
)
def test_a_preset_s_sections_choose_the_model(
    preset: str, model: str, reference: str, build: type
) -> None:
    suite = load_suite(preset)
    kind = kind_of(suite)
    assert (suite.model, kind.name, kind.reference, kind.build) == (model, model, reference, build)
    assert next(iter(variants_of(suite))) == reference, "the reference stands first"


def test_a_preset_cannot_describe_two_models() -> None:
    with pytest.raises(ConfigError, match=r"preset fusion-8 describes two models"):
        load_suite("fusion-8", ["dlrm.num_slots=3"])


def test_variants_belong_to_one_model() -> None:
    models = {name: variant.kind for name, variant in variants.registered_variants().items()}
    assert {name for name, kind in models.items() if kind == "fusion"} == {"unfused", "fused"}
    assert [v.name for v in default_variants(FUSION)[0]] == ["unfused", "fused"]
    assert not {v.name for v in default_variants(load_suite("laptop"))[0]} & {"unfused", "fused"}


@pytest.mark.parametrize(
    ("preset", "name", "problem", "hint"),
    [
        (
            "laptop",
            "fused",
            "variant 'fused' serves the many-table model, and preset laptop describes DLRM",
            "pass --preset fusion-100 or fusion-8, or a variant of DLRM, such as native_tf",
        ),
        (
            "fusion-8",
            "hps_tf",
            "variant 'hps_tf' serves DLRM, and preset fusion-8 describes the many-table model",
            "pass --preset criteo or laptop or smoke, or a variant of the many-table model, such "
            "as unfused",
        ),
    ],
)
def test_a_variant_of_another_model_is_refused(
    tmp_path: Path, preset: str, name: str, problem: str, hint: str
) -> None:
    suite = load_suite(preset)
    with pytest.raises(ConfigError) as chosen:
        select_variants([name], suite)
    assert (chosen.value.problem, chosen.value.hint) == (problem, hint)
    with pytest.raises(ConfigError) as built:
        build_repository(suite, select_variants([name]), tmp_path)
    assert built.value.problem == problem
    assert not list(tmp_path.iterdir())


def test_an_unknown_variant_names_those_of_the_model() -> None:
    with pytest.raises(ConfigError, match=r"unknown variant 'unfuse'") as caught:
        select_variants(["unfuse"], FUSION)
    assert caught.value.hint == "did you mean unfused? Known: unfused, fused"


def test_the_workload_is_of_the_model_that_is_served() -> None:
    settings = workload_of(FUSION).settings
    assert settings["fusion.num_tables"] == 8
    assert not [name for name in settings if name.startswith("dlrm.")]
    assert workload_of(load_suite("fusion-100")).digest != workload_of(FUSION).digest


def test_stored_baselines_of_dlrm_are_of_the_workload_of_today() -> None:
    folders = [p for p in (ROOT / "baselines").iterdir() if p.is_dir() and p.name != "published"]
    stored = [b for f in folders for b in load_baselines(ROOT / "baselines", f.name).here.values()]
    own = [b for b in stored if b.preset in preset_names() and b.variant == "native_tf"]
    assert len(own) > 10
    for baseline in own:
        assert baseline.workload == workload_of(load_suite(baseline.preset)), baseline.benchmark


def test_every_table_is_asked_for_its_own_keys() -> None:
    suite = load_suite("fusion-8", ["load.keys=uniform"])
    first, second, *_ = request_batches(suite, 64)
    assert first.keys.shape == (8, 64, 26)
    assert first.keys.dtype == np.int32
    assert not np.array_equal(first.keys, second.keys)
    for table, keys in enumerate(first.keys):
        assert 10_000 * table <= keys.min() <= keys.max() < 10_000 * (table + 1)
    assert (first.size, first.first(7).size, first.first(99).size) == (64, 7, 64)
    np.testing.assert_array_equal(first.first(7).keys, first.keys[:, :7])


def test_the_numpy_reference_adds_up_every_row_of_every_table(tmp_path: Path) -> None:
    build = ManyTablesBuild(TINY, tmp_path, ModelRepository(tmp_path / "repository"))
    build.write_tables(lambda _: None)
    keys = np.array([[[0, 3]], [[4, 4]], [[11, 8]]], np.int32)
    flat = [build.rows[i][k - 4 * i] for i in range(3) for k in keys[i, 0]]
    by_hand = sum(
        float(value) * float(weight)
        for value, (weight,) in zip(np.concatenate(flat), build.layer.kernel, strict=True)
    )
    answer = build.answer(TableKeys(keys))
    assert answer.shape == (1, 1)
    np.testing.assert_allclose(answer[0, 0], by_hand + float(build.layer.bias[0]), rtol=1e-5)
    assert not np.array_equal(build.rows[0], build.rows[1]), "tables have rows of their own"


def test_the_tables_are_stored_as_one_by_the_flag_alone(tmp_path: Path) -> None:
    build = ManyTablesBuild(TINY, tmp_path, ModelRepository(tmp_path / "repository"))
    apart, as_one = (ps_configuration(build, fused=fused) for fused in (False, True))
    assert apart.models == as_one.models
    assert (apart.fuse_embedding_table, as_one.fuse_embedding_table) == (False, True)
    assert apart.models[0].embedding_vecsize_per_table == (2, 2, 2)
    assert apart.models[0].maxnum_catfeature_query_per_table_per_sample == (2, 2, 2)
    assert apart.models[0].gpucacheper == 1.0


def test_each_table_is_an_input_of_the_served_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_models, "find_gpus", lambda: ())
    build = ManyTablesBuild(TINY, tmp_path, ModelRepository(tmp_path))
    unfused.add_server(build, "fused")
    written = (tmp_path / "fused" / "config.pbtxt").read_text()
    if os.environ.get("HPSBENCH_GOLDEN") == "write":
        GOLDEN.write_text(written)
    assert written == GOLDEN.read_text()


def test_the_forecast_counts_every_table() -> None:
    places = [("fused", 256)]
    one_more = load_suite("fusion-8", ["fusion.num_tables=9"])
    added = host_bytes(one_more, places, on_gpu=False) - host_bytes(FUSION, places, on_gpu=False)
    assert added > FUSION.tables.num_bytes
