"""The pages of docs/results: written from the baselines, and as committed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpsbench import baselines, cli, published
from hpsbench.baselines import Baseline
from hpsbench.report.results import results_files
from hpsbench.report.styles import chart_style
from hpsbench.runs import baselines_of
from tests.scripted import baseline_of, measurement
from tests.scripted_report import sample_run

ROOT = Path(__file__).parents[2]
PUBLICATIONS = published.load(ROOT / "baselines")


@pytest.fixture(scope="module")
def stored() -> list[Baseline]:
    return baselines_of(sample_run())


@pytest.fixture(scope="module")
def files(stored: list[Baseline]) -> dict[str, str]:
    return results_files(stored, PUBLICATIONS)


def test_a_machine_has_a_page_and_every_chart_that_it_shows(files: dict[str, str]) -> None:
    pages = [name for name in files if name.endswith(".md")]
    assert pages == ["cpu-test-2c.md"]
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", files["cpu-test-2c.md"])
    assert sorted([*shown, *pages]) == sorted(files)
    assert shown == [
        f"cpu-test-2c-laptop-{name}.svg" for name in ("latency", "latency-zipf", "ratio")
    ]


def test_the_table_has_every_row_and_batch_size_with_its_ratio(
    stored: list[Baseline], files: dict[str, str]
) -> None:
    lines = [ln for ln in files["cpu-test-2c.md"].splitlines() if ln.startswith("| ")]
    head = [cell.strip(" `") for cell in lines[0].strip("|").split("|")]
    assert head[1] == "native_tf"
    assert set(head[1:]) == {b.variant for b in stored}
    assert [ln.split("|")[1].strip() for ln in lines[1:]] == ["32", "256", "1024", "4096"]
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert re.fullmatch(r"\d+\.\d+", cells[head.index("native_tf")])
    assert re.fullmatch(r"\d+\.\d+ \(1\.7\d\d\)", cells[head.index("hps_ensemble")])
    assert lines[1].count("\N{EN DASH}") == 3


def test_a_chart_is_a_picture_of_its_own(files: dict[str, str]) -> None:
    for name, text in files.items():
        if name.endswith(".svg"):
            root = ElementTree.fromstring(text)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert "--v1:" in text
            words = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
            assert "batch size" in words
            assert any(str(word).startswith("hps_tf") for word in words)


def test_a_chart_has_the_rules_that_it_needs_and_no_others(files: dict[str, str]) -> None:
    """What only the page's style says must not change a picture."""
    pictures = [ElementTree.fromstring(text) for name, text in files.items() if ".svg" in name]
    (style,) = {picture.findtext("{http://www.w3.org/2000/svg}style") for picture in pictures}
    assert style is not None
    assert style.startswith(chart_style())
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
    used = {
        name
        for picture in pictures
        for drawn in picture.iter()
        for name in drawn.get("class", "").split()
    }
    ruled = set(re.findall(r"\.([a-z]\w*)", style))
    # A line of ours is one as any is, and a label a text.
    assert used - ruled == {"own", "label"}
    # Others may have a variant that these have not.
    assert {name for name in ruled - used if not re.fullmatch(r"v\d", name)} == set()
    defined = set(re.findall(r"--(\w+):", style))
    assert defined == set(re.findall(r"var\(--(\w+)", style))


def test_one_variant_alone_has_no_ratios() -> None:
    alone = [baseline_of(measurement("native_tf", size)) for size in (7, 64)]
    assert list(results_files(alone, ())) == ["cpu-test-2c-smoke-latency.svg", "cpu-test-2c.md"]
    no_files: list[Baseline] = []
    assert results_files(no_files, PUBLICATIONS) == {}


def test_several_machines_and_presets_stand_apart(stored: list[Baseline]) -> None:
    both = [
        stored[0],
        dataclasses.replace(stored[0], machine="gpu-x"),
        dataclasses.replace(stored[0], machine="gpu-x", preset="criteo"),
    ]
    files = results_files(both, ())
    assert [name for name in files if name.endswith(".md")] == ["cpu-test-2c.md", "gpu-x.md"]
    assert re.findall(r"## Preset (\w+)", files["gpu-x.md"]) == ["criteo", "laptop"]


def test_the_committed_pages_are_those_of_the_committed_baselines(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "results"
    arguments = ["--baselines", str(ROOT / "baselines"), "--results", str(tmp_path)]
    assert cli.main(["report", *arguments]) == 0
    hint = "run `hpsbench report --results docs/results`, and commit what it wrote"
    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    committed = {p.name: p.read_text("utf-8") for p in folder.iterdir() if p.name != "README.md"}
    assert written.keys() == committed.keys(), hint
    assert [name for name in written if written[name] != committed[name]] == [], hint
    machines = {b.machine for b in baselines.load_every(ROOT / "baselines")}
    text = (folder / "README.md").read_text("utf-8")
    assert not [machine for machine in machines if f"({machine}.md)" not in text]
