"""The published tables that come with the repository, and what reading them refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hpsbench import baselines, published
from hpsbench.errors import BaselineError
from hpsbench.published import COMPUTE_INFER, THROUGHPUT, Publication, PublishedTable

FOLDER = Path(__file__).parents[2] / "baselines"
BATCH_SIZES = (32, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@pytest.fixture(scope="module")
def publications() -> dict[str, Publication]:
    return {publication.name: publication for publication in published.load(FOLDER)}


def table(publication: Publication, quantity: str) -> PublishedTable:
    found = publication.table(quantity)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "quantity", "variant", "batch_size", "value"),
    [
        ("DGX A100", COMPUTE_INFER, "native_tf", 32, 0.636e6),
        ("DGX A100", COMPUTE_INFER, "hps_tf", 4096, 1.552e6),
        ("DGX A100", COMPUTE_INFER, "hps_ensemble", 131072, 1190.025e6),
        ("DGX A100", THROUGHPUT, "native_tf", 65536, 4795.901e3),
        ("DGX A100", THROUGHPUT, "hps_tf", 1024, 1177.011e3),
        ("DGX A100", THROUGHPUT, "hps_ensemble", 32, 37.470e3),
        ("A100-SXM4-80GB", COMPUTE_INFER, "native_tf_hybrid", 131072, 213_990e3),
        ("A100-SXM4-80GB", COMPUTE_INFER, "hps_tf", 256, 639e3),
        ("A100-SXM4-80GB", COMPUTE_INFER, "hps_onnx_fp32", 16384, 4355e3),
        ("A100-SXM4-80GB", COMPUTE_INFER, "hps_onnx_fp16", 64, 346e3),
    ],
)
def test_a_published_figure_is_in_si_units(
    publications: dict[str, Publication],
    name: str,
    quantity: str,
    variant: str,
    batch_size: int,
    value: float,
) -> None:
    values = table(publications[name], quantity).values_of(variant)
    assert values[batch_size] == pytest.approx(value, rel=1e-12)
    assert tuple(values) == BATCH_SIZES


def test_published_throughput_is_the_batch_over_its_latency(
    publications: dict[str, Publication],
) -> None:
    latency = table(publications["DGX A100"], COMPUTE_INFER)
    throughput = table(publications["DGX A100"], THROUGHPUT)
    for column in latency.columns:
        samples_per_s = throughput.values_of(column.variant)
        for batch_size, ns in latency.values_of(column.variant).items():
            assert samples_per_s[batch_size] == pytest.approx(batch_size / (ns / 1e9), rel=0.002)
    assert {p.name for p in publications.values() if p.derives_throughput} == {"DGX A100"}


def test_a_throughput_that_was_measured_by_itself_is_not_derived(
    publications: dict[str, Publication],
) -> None:
    publication = publications["DGX A100"]
    infer, throughput = (table(publication, q) for q in (COMPUTE_INFER, THROUGHPUT))
    native, *others = throughput.columns
    faster = dataclasses.replace(native, values=tuple(1.01 * v for v in native.values))
    measured = dataclasses.replace(throughput, columns=(faster, *others))
    elsewhere = dataclasses.replace(infer, batch_sizes=tuple(b + 1 for b in BATCH_SIZES))
    for tables in ((infer, measured), (elsewhere, throughput), (throughput,), (infer,)):
        assert not dataclasses.replace(publication, tables=tables).derives_throughput


def test_the_published_speedups_follow_from_the_hybrid_table(
    publications: dict[str, Publication],
) -> None:
    hybrid = table(publications["A100-SXM4-80GB"], COMPUTE_INFER)
    native, fp16 = hybrid.values_of(hybrid.native), hybrid.values_of("hps_onnx_fp16")
    printed = (1.42, 1.76, 1.94, 3.58, 5.98, 8.86, 11.12, 11.56, 10.31, 10.75, 11.06)
    assert [native[b] / fp16[b] for b in BATCH_SIZES] == pytest.approx(printed, abs=0.006)


def test_the_fusion_demo_is_there_with_its_load_times(
    publications: dict[str, Publication],
) -> None:
    demo = publications["V100 table fusion"]
    figures = demo.figures
    assert {f.name: f.value for f in figures}["100 iterations"] == pytest.approx(0.944, abs=5e-4)
    assert sum(f.value for f in figures if f.name.startswith("load of table ")) == pytest.approx(
        45.296 - 38.080
    )
    (per_call,) = demo.tables
    assert per_call.values_of("fused") == {256: pytest.approx(0.944e9 / 100, rel=1e-3)}
    assert not per_call.is_line


def test_every_publication_names_its_source_and_hardware(
    publications: dict[str, Publication],
) -> None:
    assert len(publications) == 3
    for publication in publications.values():
        assert publication.source.startswith("NVIDIA-Merlin/HugeCTR, ")
        assert publication.hardware
        assert publication.notes


def test_what_is_published_is_no_class_of_machine() -> None:
    found = baselines.load(FOLDER, "cpu-test-2c")
    assert not [c for classes in found.elsewhere.values() for c in classes if c == "published"]


def test_no_folder_holds_no_publication(tmp_path: Path) -> None:
    assert published.load(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"unit": "hours"}, "compute_infer in hours"),
        ({"native": "numpy"}, "native numpy is no column"),
        ({"batch_sizes": [32]}, "has 11 values for 1 batch sizes"),
    ],
)
def test_a_table_that_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    fields = json.loads((FOLDER / "published" / "dgx-a100.json").read_text())
    fields["tables"][0] |= change
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "x.json").write_text(json.dumps(fields))
    with pytest.raises(BaselineError, match=problem):
        published.load(tmp_path)
