"""The report's page: what it holds, that it is well formed, and that it fetches nothing."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from hpsbench import figures
from hpsbench.report import charts, comparisons
from hpsbench.report.contents import Contents
from hpsbench.report.html import page
from hpsbench.report.panels import text_width
from hpsbench.verdict import Outcome
from tests.scripted import measurement, run_of
from tests.scripted_load import load_point, loaded_variant
from tests.scripted_report import every_outcome, sample_run

VOID = {"meta", "link", "br"}
SECTIONS = [
    "Verdicts", "Figures", "Latency", "Launches", "Distribution", "Stages", "Hit rates",
    "Load", "Comparisons", "History", "Machine", "Environment", "Published figures",
]  # fmt: skip


class Page(HTMLParser):
    """A parsed page; raises ValueError where an element is closed out of order, or never."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        if self.open:
            raise ValueError(f"never closed: {self.open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and self.open.pop() != tag:
            raise ValueError(f"</{tag}> closes another element")

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open[-1:]):
            self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def contents() -> Contents:
    return every_outcome()


@pytest.fixture(scope="module")
def text(contents: Contents) -> str:
    return page(contents)


@pytest.fixture(scope="module")
def parsed(text: str) -> Page:
    return Page(text)


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def bare(run: object = None, **changes: object) -> Contents:
    """Return the contents of a run with nothing beside it."""
    empty = Contents(run=run or run_of(), baselines={}, publications=(), earlier=())  # type: ignore[arg-type]
    return dataclasses.replace(empty, **changes)  # type: ignore[arg-type]


def test_the_sections_stand_in_their_order_and_are_linked(text: str, parsed: Page) -> None:
    assert headings(text) == SECTIONS
    targets = [str(a["href"]) for tag, a in parsed.tags if tag == "a"]
    ids = {f"#{a['id']}" for _, a in parsed.tags if "id" in a}
    assert len(targets) == len(SECTIONS)
    assert set(targets) <= ids


def test_every_benchmark_and_every_outcome_is_there(contents: Contents, parsed: Page) -> None:
    assert {v.outcome for v in contents.run.verdicts} == set(Outcome)
    shown = "".join(parsed.texts)
    assert not [v.benchmark for v in contents.run.verdicts if v.benchmark not in shown]
    assert not [outcome.value for outcome in Outcome if outcome.value not in shown]


def test_the_verdict_stands_before_everything_and_worst_first(text: str) -> None:
    assert text.index("2 of 31 benchmarks regressed</h1>") < text.index("<table")
    groups = re.findall(r'<details class="outcome (\w+)"', text)
    assert groups == [outcome.value.lower() for outcome in Outcome]


def test_what_to_do_follows_each_outcome(contents: Contents, parsed: Page) -> None:
    shown = "".join(parsed.texts).lower()
    hints = {v.hint.replace("`", "").lower() for v in contents.run.verdicts if v.hint}
    assert not [hint for hint in hints if hint not in shown]


def test_the_published_figures_stand_beside_ours(contents: Contents, text: str) -> None:
    row = re.search(r'<th scope="row">hps_tf</th>.*?</tr>', text.split("batch 4096", 1)[1])
    assert row is not None
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row[0])
    # A100-SXM4-80GB: 1459 us, against the hybrid's 9872; DGX A100: 1.552 ms against 1.447.
    assert cells[5:7] == ["1.459", "0.148"]
    assert cells[8:10] == ["1.552", "1.073"]
    assert float(cells[7]) == pytest.approx(1.0, abs=0.1)
    # Thousand samples per second: 2639.175 against 2830.684.
    assert cells[11:13] == ["2639", "0.932"]
    measured = figures.figures_of(contents.run)
    own, native = (measured[v, 4096].samples_per_s for v in ("hps_tf", "native_tf"))
    assert float(cells[3]) == pytest.approx(own / 1e3, rel=1e-3)
    assert float(cells[13]) == pytest.approx(own / native, rel=1e-3)
    assert len(cells) == 14


def test_a_published_table_is_headed_by_its_source_its_unit_and_what_it_is_divided_by(
    text: str,
) -> None:
    head = section(text, "figures").split("</thead>")[0]
    groups = re.findall(r'scope="colgroup"[^>]*>(.*?)</th>', head)
    assert groups == [
        "this run",
        "A100-SXM4-80GB, infer, ms<br>ratios to native_tf_hybrid",
        "DGX A100, infer, ms<br>ratios to native_tf",
        "DGX A100, k samples/s<br>ratios to native_tf",
    ]
    assert head.count(">published</th>") == head.count(">here</th>") == 3


def test_the_page_says_that_only_ratios_compare_and_what_a_throughput_is(text: str) -> None:
    lead = section(text, "figures").split("<table")[0]
    assert "of other GPUs: compare their ratios, never their milliseconds or samples" in lead
    assert "The throughput of DGX A100 is the batch size over its compute infer" in lead
    alone = section(page(bare(sample_run())), "figures")
    assert "GPUs" not in alone
    assert "published" not in alone


def test_all_published_figures_are_there(contents: Contents, text: str) -> None:
    cells = set(re.findall(r"<td[^>]*>([\d.]+)</td>", text.split('<section id="published-')[1]))
    for publication in contents.publications:
        assert publication.source in text
        for table in publication.tables:
            digits = 0 if table.unit == "us" else 3
            for column in table.columns:
                assert not [v for v in column.values if f"{v:.{digits}f}" not in cells]


def test_the_page_fetches_nothing_and_runs_nothing(text: str, parsed: Page) -> None:
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "img", "object", "embed"}
    references = [
        a.get("href") or a.get("src") for _, a in parsed.tags if a.keys() & {"href", "src"}
    ]
    assert not [r for r in references if not str(r).startswith("#") and r != "data:,"]


def test_the_page_is_small(text: str) -> None:
    assert len(text.encode()) < 500_000


def test_every_picture_is_xml_and_says_what_it_shows(text: str) -> None:
    pictures = [ElementTree.fromstring(p) for p in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(pictures) > 20
    for picture in pictures:
        first = picture[0].tag if len(picture) else None
        assert picture.get("aria-hidden") == "true" or first == "title"


def test_tables_are_tables(parsed: Page) -> None:
    assert parsed.count("table") == parsed.count("thead") > 5
    scopes = {a.get("scope") for tag, a in parsed.tags if tag == "th"}
    assert scopes == {"col", "row", "colgroup", "rowgroup"}


def test_a_launch_is_a_mark_with_its_change(contents: Contents, text: str) -> None:
    tips = re.findall(r"<title>([\w-]+), (this run|baseline), launch (\d)", text)
    assert len([t for t in tips if t[1] == "this run"]) == 4 * len(contents.run.results)
    stored = sum(b.num_launches for b in contents.baselines.values())
    assert len([t for t in tips if t[1] == "baseline"]) == stored


def test_the_history_holds_every_session(text: str) -> None:
    part = text.split('<section id="history">')[1].split("</section>")[0]
    for day in (1, 2, 3, 8):
        assert f"2026-01-{day:02}T03:04:05Z" in part
    # Two of four sessions are stored, of each benchmark but the three that lost their baselines.
    assert part.count('class="stored v') == 2 * (30 - 3)


def test_a_published_table_is_drawn_with_the_variants_that_it_has(text: str) -> None:
    part = text.split("Compute infer, beside DGX A100")[1].split("</figure>")[0]
    published = {f"v{charts.VARIANTS.index(v)}" for v in ("native_tf", "hps_tf", "hps_ensemble")}
    for kind in ("published", "own"):
        assert set(re.findall(rf'class="{kind} line (v\d)"', part)) == published


def test_a_run_alone_has_neither_history_nor_published_figures() -> None:
    text = page(bare(sample_run(variants=("native_tf", "hps_tf"))))
    Page(text)
    missing = ("Load", "Comparisons", "History", "Published figures")
    assert headings(text) == [s for s in SECTIONS if s not in missing]
    assert "No other run of these is stored" in text


def section(text: str, anchor: str) -> str:
    return text.split(f'<section id="{anchor}">')[1].split("</section>")[0]


def test_a_duet_shows_every_launch_on_its_limit_and_what_was_found(text: str) -> None:
    part = section(text, "comparisons")
    drawn = re.findall(r"<title>launch (\d), (p10|pairs|p50) ([^<]*)</title>", part)
    # Each by itself, and all in one comparison.
    assert len(drawn) == 2 * 2 * (8 + 4)
    # What was judged of each: pairs of the one, and p10 of the other.
    assert ("1", "pairs", "+6.2%") in drawn
    assert ("1", "p10", "+0.3%") in drawn
    assert re.findall(r'class="badge (\w+)"', part) == [
        *("regressed", "pass", "invalid"),
        # The worst of all, and what did not pass.
        *("regressed", "regressed", "invalid"),
    ]
    assert "</span> 1 of 3 benchmarks regressed</figcaption>" in part
    together = part.split("1 of 3 benchmarks regressed")[1]
    assert re.findall(r'class="value">([^<]*)</text>', together) == [
        "hps_tf",
        "confirming",
        "hps_ensemble",
    ]
    assert "</span> hps_onnx_fp16: answers differ" in together
    assert "answers differ: by 0.02 at most" in part
    assert "main (revision 4d84dd7b1c02) \N{RIGHTWARDS ARROW} HEAD (revision cbe677d41e9a)" in part
    assert '<td class="number">97 of 100 (91% to 99%)</td>' in part
    assert part.count("in bursts") == 2


def test_a_long_name_keeps_its_batch_size() -> None:
    long = "a_model_with_a_name_that_no_row_has_room_for-b131072"
    shown = comparisons._shortened(long, 200)
    assert shown.startswith("a_model")
    assert shown.endswith("-b131072")
    assert text_width(shown) <= 200
    assert comparisons._shortened("hps_tf-b64", 200) == "hps_tf-b64"


def test_a_load_curve_has_its_percentiles_and_its_knee(text: str) -> None:
    part = section(text, "load")
    tips = re.findall(r"<title>(\d+) requests/s, p(\d+) ([\d.]+) ms</title>", part)
    # The saturated rate has no latency to speak of. The run's own curve stands first.
    assert [(rate, q) for rate, q, _ in tips] == [
        *((rate, q) for q in ("50", "99") for rate in ("20", "40")),
        *((rate, q) for q in ("50", "99") for rate in ("100", "200", "400")),
    ]
    # Each with its interval.
    assert part.count('class="bound v1"') == len(tips)
    assert part.count(">knee</text>") == 1
    assert "up to 400 requests/s: p99 within 20.00 ms, the SLO; alone 1.900 ms" in part
    assert "poisson arrivals over http, models/, 2026-01-06 03:04" in part
    assert "no knee was found; alone 5.100 ms; INVALID at 40 requests/s, see its figures" in part
    assert "constant arrivals, this run" in part


def test_a_load_curve_tells_all_that_its_command_printed(text: str) -> None:
    own, swept = re.findall(r'<details class="fold">(.*?)</details>', section(text, "load"))
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", swept)
    assert heads == [
        "due/s", "answered/s", "p50, ms", "p90, ms", "p95, ms", "p99, ms", "p99.9, ms",
        "in 20 ms", "requests", "late", "failed",
    ]  # fmt: skip
    rows = re.findall(r"<tr>(.*?)</tr>", swept)[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    dash = "\N{EN DASH}"
    assert cells[2] == [
        "400.0",
        "400.0",
        f'3.750<span class="note">3.375 {dash} 4.500</span>',
        f'7.500<span class="note">6.750 {dash} 9.000</span>',
        f'9.375<span class="note">8.438 {dash} 11.25</span>',
        f'12.50<span class="note">11.25 {dash} 15.00</span>',
        f'17.50<span class="note">15.75 {dash} ?</span>',
        '99.3%<span class="note">397.2/s</span>',
        "4000",
        '8<span class="note">2.345 ms at most</span>',
        '3<span class="note">1 timed out</span>',
    ]  # fmt: skip
    assert [row[0] for row in cells] == [
        "100.0", "200.0", "400.0", '800.0<span class="note">saturated</span>'
    ]  # fmt: skip
    assert cells[0][-2:] == ["0", "0"]
    assert "520.0 answers/s of closed-loop clients" in swept
    assert "400.0/s: up to there p99 is within the SLO, 20 ms; at 800.0/s not" in swept
    assert "p99.9 needs at least 5000 requests for its 95% interval: too few at 100.0" in swept
    assert "in 20 ms" not in own
    assert '40.0<span class="note">INVALID</span>' in own
    assert "at 40.0/s: 31 of 400 requests left more than 1 ms late" in own


def test_a_percentile_among_failed_requests_is_no_number() -> None:
    point = load_point(100.0, 3.0)
    lost = dataclasses.replace(
        point, percentiles=tuple(dataclasses.replace(p, value_ns=None) for p in point.percentiles)
    )
    loaded = loaded_variant()
    curve = dataclasses.replace(loaded.curve, points=(lost,))
    run = dataclasses.replace(sample_run(), loads=(dataclasses.replace(loaded, curve=curve),))
    part = section(page(bare(run)), "load")
    assert part.count(">failed</td>") == 5
    assert "<svg" not in part


def test_hit_rates_stand_by_row_and_tier(text: str) -> None:
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", section(text, "hit-rates"))
    rows = [cells[i : i + 6] for i in range(0, len(cells), 6)]
    assert rows[0] == ["hps_tf", "GPU 0 cache", *["100.00%"] * 4]
    dash = "\N{EN DASH}"
    assert ["hps_tf-zipf", "GPU 0 cache", dash, dash, "69.50%", "71.50%"] in rows
    assert not [row for row in rows if row[0].startswith("native_tf")]


def test_the_machine_is_told_in_a_few_sentences_and_launch_by_launch(text: str) -> None:
    part = section(text, "machine")
    assert "Other processes used 5% of the CPUs (6% at most)" in part
    assert "clocks were held back by: power cap" in part
    # Four launches of four batch sizes, and of two with Zipf keys too: whoever was asked in turn
    # had the same machine.
    assert part.count("<tr>") == 2 * (1 + 4 * 6)
    assert "power cap 12%" in part


def test_a_machine_that_made_a_launch_invalid_is_named() -> None:
    (first, *others) = measurement("hps_tf", 7).launches
    telemetry = sample_run().results[0].measurement.launches[0].telemetry
    assert telemetry is not None
    (gpu,) = telemetry.gpus
    throttled = dataclasses.replace(gpu, reasons={"power brake": 0.5})
    told = dataclasses.replace(first, telemetry=dataclasses.replace(telemetry, gpus=(throttled,)))
    measured = dataclasses.replace(measurement("hps_tf", 7), launches=(told, *others))
    text = page(bare(run_of(measured)))
    assert "batch 7, launch 1: GPU 0 (NVIDIA H100 80GB HBM3) was throttled in 50%" in text


def test_traced_stages_have_their_percentiles(contents: Contents, text: str) -> None:
    profile = contents.run.results[0].measurement.stages
    assert profile is not None
    infer = profile.stages["compute_infer"]
    shown = f"{infer.p50_ns / 1e6:#.4g} / {infer.p99_ns / 1e6:#.4g}"
    assert shown in section(text, "stages")


def test_what_was_not_measured_leaves_a_gap_and_no_error() -> None:
    served = measurement("native_tf", 7)
    unserved = [dataclasses.replace(launch, server=None) for launch in served.launches]
    run = run_of(
        dataclasses.replace(served, launches=tuple(unserved)),
        measurement("hps_tf", 64, launches=(), invalid="Triton died"),
    )
    text = page(bare(run))
    Page(text)
    assert "Stages" not in headings(text)
    assert "Triton died" in text


def test_a_run_that_measured_nothing_has_a_page() -> None:
    text = page(bare())
    Page(text)
    assert headings(text) == ["Verdicts", "Environment"]
    assert "<h1>Nothing was measured</h1>" in text


def test_one_launch_of_one_variant_has_a_page() -> None:
    Page(page(bare(run_of(measurement("native_tf", 7, launches=(1.0,))))))


def test_what_others_wrote_is_escaped() -> None:
    run = run_of(measurement(invalid="<script>alert('x')</script> & more"))
    text = page(bare(run))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Page(text)


def test_a_variant_without_a_colour_of_its_own_gets_one() -> None:
    run = run_of(measurement("native_tf"), measurement("newcomer"))
    assert 'class="dot v8"' in page(bare(run))
