"""The report as one HTML file: no script, nothing fetched, the same on a phone and on a desk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from hpsbench import figures
from hpsbench.figures import Figures
from hpsbench.measurements import Measurement
from hpsbench.published import THROUGHPUT
from hpsbench.report import charts, comparisons, load_section, notation, styles
from hpsbench.report.contents import Apart, Contents
from hpsbench.report.elements import Content, Element, element, html_document
from hpsbench.report.forest import forest_span
from hpsbench.report.machine import hit_rate_table, machine_section, watched_of
from hpsbench.report.tables import (
    environment,
    figure_table,
    publication_details,
    published_beside,
    sentence,
    stage_percentile_table,
    stage_table,
    verdict_group,
)
from hpsbench.reproduction import CODE_OR_MACHINE, side_by_side
from hpsbench.runs import LoadMeasurement, Run
from hpsbench.workload import split_row


def page(contents: Contents) -> str:
    """Return the report of a run."""
    run = contents.run
    return _page(
        f"{notation.headline(run.verdicts)} - hpsbench {run.preset}",
        _header(contents),
        _sections(contents),
        f"hpsbench {run.machine.versions.get('hpsbench', '')}, run {run.run_id}",
    )


def page_without_run(machine: str, apart: Apart) -> str:
    """Return the report of what commands measured on a class of machine, where no run is stored."""
    sections = [*_loads((), apart), *_comparisons(apart)]
    title = " and ".join(name for name, _ in sections).capitalize()
    header = element(
        "header",
        element("p", "hpsbench report", class_="overline"),
        element("h1", title),
        element("p", "on ", element("b", machine), "; no session is stored", class_="meta"),
    )
    return _page(
        f"{title} - hpsbench", header, sections, f"hpsbench {metadata.version('hpsbench')}"
    )


def _page(
    title: str, header: Element, sections: Sequence[tuple[str, list[Content]]], footer: str
) -> str:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        # An empty icon, or browsers ask the server for one.
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", styles.page_style()),
    )
    links = [element("a", name, href=f"#{_anchor(name)}") for name, _ in sections]
    body = element(
        "body",
        header,
        element("nav", links, aria_label="Sections"),
        element("main", [_section(name, parts) for name, parts in sections]),
        element("footer", footer),
    )
    return html_document(head, body)


def _header(contents: Contents) -> Element:
    run = contents.run
    groups = notation.by_outcome(run.verdicts)
    chips = [
        element(
            "li",
            element("b", str(len(group))),
            f" {outcome.value}",
            class_=f"chip {outcome.value.lower()}",
        )
        for outcome, group in groups.items()
    ]
    worst = next(iter(groups), None)
    accepted = notation.accepted(run.verdicts, contents.accepted)
    recorded = run.recorded_at.replace("T", " ").replace("Z", " UTC")
    return element(
        "header",
        element("p", "hpsbench report", class_="overline"),
        element("h1", notation.headline(run.verdicts)),
        element("ul", chips, class_="chips"),
        element(
            "p",
            "preset ",
            element("b", run.preset),
            " on ",
            element("b", run.machine.cls),
            f", {recorded}",
            class_="meta",
        ),
        element("p", sentence(accepted), class_="meta") if accepted else None,
        class_=worst.value.lower() if worst else None,
    )


def _sections(contents: Contents) -> list[tuple[str, list[Content]]]:
    run = contents.run
    cells, variants = figures.figures_of(run), figures.variants_of(run)
    parts: list[tuple[str, list[Content]]] = [("Verdicts", _verdicts(contents))]
    if cells:
        parts.append(("Figures", _figures(contents, cells, variants)))
        parts.append(("Latency", _latency(contents, cells, variants)))
    by_place = {(m.variant, m.batch_size): m for m in (r.measurement for r in run.results)}
    legend = _legend(variants, variants)
    launches = {
        (r.measurement.variant, r.measurement.batch_size): ratios
        for r in run.results
        if (ratios := figures.launch_ratios(r, contents.baselines.get(r.measurement.benchmark)))
    }
    if launches:
        parts.append(("Launches", [*_launches_lead(bool(contents.baselines)),
                                   _grid(charts.launch_spread(launches, variants))]))  # fmt: skip
        curves = {place: figures.distribution(m) for place, m in by_place.items()}
        lead = "The share of requests that the client had answered within a time, over all "
        lead += "launches, from p1 to p99. Markers stand at p10, p50 and p90."
        panels = charts.distributions(curves, variants)
        parts.append(("Distribution", [_lead(lead), legend, _grid(panels)]))
    parts += _stages(by_place, variants)
    parts += _hit_rates(run)
    parts += _loads(run.loads, contents)
    parts += _comparisons(contents)
    parts += _history(contents, variants)
    watched = watched_of(run)
    if watched:
        parts.append(("Machine", machine_section(watched)))
    parts.append(("Environment", environment(run)))
    if contents.publications:
        lead = "What the tables and charts above are put beside, whole and with its source."
        details = [publication_details(p) for p in contents.publications]
        parts.append(("Published figures", [_lead(lead), *details]))
    return parts


def _verdicts(contents: Contents) -> list[Content]:
    run = contents.run
    if not run.verdicts:
        return [_lead("The session measured nothing that could be judged.")]
    verdicts, since = notation.changed_since(contents.verdicts)
    groups = notation.by_outcome(verdicts)
    span = forest_span(run.verdicts)
    lead: list[Content] = []
    if any(v.change is not None for v in run.verdicts):
        text = "Changes are of the latency as a ratio to the reference that ran interleaved on "
        text += "the same servers, of p10 or of pairs (requests asked one behind the other), "
        text += "whichever was steadier; more is slower. The band is the limit that a change must "
        text += "leave to count, and the bar its confidence interval."
        lead.append(_lead(text))
    if since:
        arrowed = since.replace(" -> ", f" {notation.ARROW} ")
        lead.append(_lead(f"Changed since their baselines: {arrowed}."))
    command = side_by_side(run, contents.baselines)
    if command is not None:
        lead.append(_lead(f"{CODE_OR_MACHINE} is told by asking both commits in turn:"))
        lead.append(element("pre", element("code", command), tabindex=0))
    return [*lead, *(verdict_group(outcome, group, span) for outcome, group in groups.items())]


def _figures(
    contents: Contents, cells: Mapping[tuple[str, int], Figures], variants: Sequence[str]
) -> list[Content]:
    text = "Medians over the launches: client latency, the server's mean compute infer, and "
    text += "throughput. Ratios are what is judged, of p10 as here or of pairs."
    lead = [_lead(text)]
    beside = published_beside(contents, cells)
    if beside:
        text = "Published figures are of other GPUs: compare their ratios, never their "
        text += "milliseconds or samples. Each is a ratio to its table's own native column, with "
        text += "the same ratio of this run under \u201chere\u201d. Of infer less is faster, of "
        text += "samples per second more."
        derived = " and ".join(
            publication.name
            for publication, table in beside
            if table.quantity == THROUGHPUT and publication.derives_throughput
        )
        if derived:
            text += f" The throughput of {derived} is the batch size over its compute infer; this "
            text += "run's is what clients got, transport and queueing included."
        lead.append(_lead(text))
    return [*lead, figure_table(contents, cells, variants)]


def _latency(
    contents: Contents, cells: Mapping[tuple[str, int], Figures], variants: Sequence[str]
) -> list[Content]:
    beside = charts.server_latency(cells, variants, contents.publications)
    compared = [
        column.variant
        for publication in contents.publications
        for table in publication.tables
        if table.is_line
        for column in table.columns
    ]
    shown = [*variants, *(v for v in charts.VARIANTS if beside and v in compared)]
    legend = _legend(list(dict.fromkeys(shown)), variants, published=bool(beside))
    lead = "Both axes are logarithmic."
    if beside:
        lead += " Solid lines with markers are this run; dashed lines were published, on "
        lead += "other machines."
    return [_lead(lead), legend, _grid([*charts.client_latency(cells, variants), *beside])]


def _launches_lead(with_baseline: bool) -> list[Content]:
    text = "Every launch of the servers is one observation. "
    if with_baseline:
        text += "Filled marks are this run's launches, hollow ones the baseline's, both as changes "
        text += "from the baseline's typical ratio; the band is the verdict's limit."
    else:
        text += "No other run of these is stored as a baseline, so they are shown as changes from "
        text += (
            "this run's own typical ratio: how far they spread is what this machine can resolve."
        )
    return [_lead(text)]


def _stages(
    by_place: Mapping[tuple[str, int], Measurement], variants: Sequence[str]
) -> list[tuple[str, list[Content]]]:
    split = {place: s for place, m in by_place.items() if (s := figures.stages(m)) is not None}
    profiles = {place: p for place, m in by_place.items() if (p := m.stages) is not None}
    if not split:
        return []
    text = "Where the mean latency went, in Triton's stages; an ensemble's steps are added up. "
    text += "What is left of the client's latency is transport, HTTP and scheduling."
    keys = [
        element("li", element("span", class_=f"key s{place}"), name)
        for place, (name, _) in enumerate(charts.STAGES)
    ]
    return [
        (
            "Stages",
            [
                _lead(text),
                element("ul", keys, class_="legend"),
                _grid(charts.stage_bars(split, variants)),
                stage_table(split, variants),
                stage_percentile_table(profiles, variants) if profiles else None,
            ],
        )
    ]


def _hit_rates(run: Run) -> list[tuple[str, list[Content]]]:
    table = hit_rate_table(run)
    if table is None:
        return []
    text = "Hits over keys, of all that lookups asked of a tier, warm-up included; what a tier did "
    text += "not have, the next was asked. Means over the launches."
    return [("Hit rates", [_lead(text), table])]


def _loads(measured: Sequence[LoadMeasurement], apart: Apart) -> list[tuple[str, list[Content]]]:
    curves = load_section.shown_curves(measured, apart.loads)
    if not curves:
        return []
    lead = element("p", *sentence(load_section.lead(of_run=bool(measured))), class_="lead")
    tables = load_section.load_tables(curves)
    return [("Load", [lead, _grid(load_section.load_panels(curves)), *tables])]


def _comparisons(apart: Apart) -> list[tuple[str, list[Content]]]:
    parts: list[Content] = []
    if apart.comparisons:
        parts += [element("p", *sentence(comparisons.LEAD), class_="lead"),
                  _grid(comparisons.comparison_panels(apart.comparisons))]  # fmt: skip
    if apart.selftests:
        text = "What such comparisons tell apart on this machine, by its `hpsbench selftest`: how "
        text += "often each injected change was found, with the 95% interval of the rate."
        parts += [element("p", *sentence(text), class_="lead")]
        parts += [comparisons.selftest_table(apart.selftests)]
    return [("Comparisons", parts)] if parts else []


def _history(contents: Contents, variants: Sequence[str]) -> list[tuple[str, list[Content]]]:
    places = {
        r.measurement.benchmark: (r.measurement.variant, r.measurement.batch_size)
        for r in contents.run.results
    }
    found = figures.history(contents.run, contents.earlier, contents.baselines)
    panels = charts.histories({places[name]: line for name, line in found.items()}, variants)
    if not panels:
        return []
    text = "The same benchmarks in the sessions before this one, on this class of machine and with "
    text += "this workload. Hollow marks are sessions that are stored as baselines."
    return [("History", [_lead(text), _legend(variants, variants), _grid(panels)])]


def _legend(shown: Sequence[str], variants: Sequence[str], *, published: bool = False) -> Element:
    items = [
        element("li", charts.swatch(charts.place_of(variant, variants)), variant)
        for variant in dict.fromkeys(split_row(row)[0] for row in shown)
    ]
    if published:
        items.append(element("li", charts.swatch(0, dashed=True), "dashed: published"))
    return element("ul", items, class_="legend")


def _section(name: str, parts: Sequence[Content]) -> Element:
    return element("section", element("h2", name), *parts, id=_anchor(name))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _lead(text: str) -> Element:
    return element("p", text, class_="lead")


def _grid(panels: Sequence[Element]) -> Element:
    # Four as two rows of two: three and a lonely one look like an accident.
    return element("div", panels, class_="grid paired" if len(panels) in (2, 4) else "grid")
