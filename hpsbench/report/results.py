"""The pages of docs/results: stored baselines as a table and charts, a page for each machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from xml.etree import ElementTree

from hpsbench.baselines import Baseline
from hpsbench.figures import Figures, in_order, reference_variant, typical_ratio
from hpsbench.published import COMPUTE_INFER, Publication
from hpsbench.report import charts, notation, styles
from hpsbench.report.elements import Element, element
from hpsbench.report.panels import (
    WIDTH,
    Frame,
    log_scale,
    log_ticks,
    marker,
    panel,
    path,
    words,
    x_axis,
    y_axis,
)
from hpsbench.session import NUMPY
from hpsbench.workload import split_row

_LEGEND_ROW = 20.0
_RATIO_HEIGHT = 330.0
_PER_LEGEND_ROW = 2
#: What a picture has of the page around it otherwise.
_PICTURE_STYLE = "svg { font-family: system-ui, sans-serif; background: var(--page); }"


def results_files(
    baselines: Iterable[Baseline], publications: Sequence[Publication]
) -> dict[str, str]:
    """Return the text of each file by its name: `<machine>.md`, and the SVG charts it shows."""
    machines: dict[str, dict[str, list[Baseline]]] = {}
    for baseline in baselines:
        presets = machines.setdefault(baseline.machine, {})
        presets.setdefault(baseline.preset, []).append(baseline)
    files: dict[str, str] = {}
    for machine, presets in sorted(machines.items()):
        lines = [
            f"# {machine}",
            "",
            "Written by `hpsbench report --results docs/results` from the stored baselines of this "
            "class of machine; do not edit it. Every launch, and the versions it ran with, are in "
            f"[baselines/{machine}](../../baselines/{machine}).",
        ]
        for preset, stored in sorted(presets.items()):
            cells = {(b.variant, b.batch_size): _figures(b) for b in stored}
            reference = reference_variant(stored)
            rows = in_order(sorted({b.variant for b in stored}, key=_place), reference)
            pictures = _pictures(cells, rows, reference, publications)
            lines += ["", f"## Preset {preset}", "", _provenance(stored), ""]
            for name, (title, picture) in pictures.items():
                file = f"{machine}-{preset}-{name}.svg"
                files[file] = picture
                lines += [f"![{title}]({file})", ""]
            lines += _table(cells, rows, reference)
        files[f"{machine}.md"] = "\n".join(lines) + "\n"
    return files


def _figures(baseline: Baseline) -> Figures:
    launches = [launch for run in baseline.runs for launch in run.launches]
    p50_ns = median(launch.p50_ns for launch in launches)
    ratios = [[launch.ratio_p10 for launch in run.launches] for run in baseline.runs]
    return Figures(
        p10_ns=median(launch.p10_ns for launch in launches),
        p50_ns=p50_ns,
        compute_infer_ns=None,
        samples_per_s=baseline.batch_size * 1e9 / p50_ns,
        ratio=1.0 if baseline.reference == NUMPY else typical_ratio(ratios),
    )


def _place(row: str) -> tuple[int, str]:
    return charts.place_of(row, [row]), row


def _provenance(stored: Sequence[Baseline]) -> str:
    runs = {run.run_id: run for baseline in stored for run in baseline.runs}
    newest = max(runs.values(), key=lambda run: run.recorded_at)
    hardware = ", ".join(
        newest.fingerprint[name] for name in ("gpu", "cpu") if name in newest.fingerprint
    )
    settings = stored[0].workload.settings
    size = f"{settings['tables.num_embeddings']:,} rows x {settings['tables.embedding_dim']}"
    if "fusion.num_tables" in settings:
        size = f"{settings['fusion.num_tables']} tables of {size}"
    versions = ", ".join(
        f"{name} {newest.under_test[name]}"
        for name in ("tensorflow", "tensorflow-cpu", "nvidia-pytriton")
        if name in newest.under_test
    )
    cores = newest.fingerprint.get("cores", "?")
    return (
        f"{size}, on {hardware} ({cores} cores), {versions}; {len(runs)} sessions "
        f"up to {newest.recorded_at[:10]}. Measure it again with "
        f"`pytest tests/benchmarks/test_latency.py --preset {stored[0].preset}`."
    ).replace("; 1 sessions up to", "; 1 session of")


def _table(
    cells: Mapping[tuple[str, int], Figures], rows: Sequence[str], reference: str
) -> list[str]:
    """Return client medians in milliseconds, each with its p10 ratio in parentheses."""
    sizes = sorted({size for _, size in cells})
    lines = [
        f"Client latency, p50 in ms (p10 as a ratio to `{reference}`, with the same keys):",
        "",
        f"| batch | {' | '.join(f'`{row}`' for row in rows)} |",
        f"|---:|{'---:|' * len(rows)}",
    ]
    for size in sizes:
        texts = []
        for row in rows:
            cell = cells.get((row, size))
            if cell is None:
                texts.append(notation.DASH)
                continue
            ratio = "" if split_row(row)[0] == reference else f" ({notation.ratio(cell.ratio)})"
            texts.append(f"{notation.milliseconds(cell.p50_ns)}{ratio}")
        lines.append(f"| {size} | {' | '.join(texts)} |")
    return lines


def _pictures(
    cells: Mapping[tuple[str, int], Figures],
    rows: Sequence[str],
    reference: str,
    publications: Sequence[Publication],
) -> dict[str, tuple[str, str]]:
    """Return each chart's title and SVG by its name."""
    pictures = {}
    for number, figure in enumerate(charts.client_latency(cells, rows)):
        keys = list(dict.fromkeys(split_row(row)[1] for row in rows))[number]
        of_keys = [row for row in rows if split_row(row)[1] == keys]
        pictures["-".join(filter(None, ("latency", keys)))] = _standalone(figure, of_keys)
    own = [row for row in rows if not split_row(row)[1]]
    compared = [row for row in own if row != reference]
    if compared:
        pictures["ratio"] = _standalone(_ratios(cells, compared, reference, publications), compared)
    return pictures


def _ratios(
    cells: Mapping[tuple[str, int], Figures],
    rows: Sequence[str],
    reference: str,
    publications: Sequence[Publication],
) -> Element:
    """Return the panel of p10 ratios over batch size, with published ratios dashed."""
    own = {row: {s: c.ratio for (name, s), c in cells.items() if name == row} for row in rows}
    sizes = sorted({size for values in own.values() for size in values})
    published: dict[str, dict[int, float]] = {}
    for table in (p.table(COMPUTE_INFER) for p in publications):
        if table is not None and table.native == reference:
            native = table.values_of(reference)
            for row in rows:
                values = {
                    size: ns / native[size]
                    for size, ns in table.values_of(row).items()
                    if sizes[0] <= size <= sizes[-1]
                }
                published.setdefault(row, values)
    every = [r for lines in (own, published) for values in lines.values() for r in values.values()]
    low, high = min(0.9, *every) / 1.03, max(1.1, *every) * 1.03
    frame = Frame(left=50, right=WIDTH - 14, top=30, bottom=_RATIO_HEIGHT - 42)
    x = log_scale(sizes[0] / 1.15, sizes[-1] * 1.15, frame.left, frame.right)
    # One variant far above the others must not press them flat.
    y = log_scale(low, high, frame.bottom, frame.top)
    marks = [
        *y_axis(frame, y, [(t, f"{t:g}") for t in log_ticks(low, high)], f"p10 : {reference}"),
        *x_axis(frame, x, [(size, str(size)) for size in sizes], "batch size"),
    ]
    for kind, lines in (("published", published), ("own", own)):
        for row, values in lines.items():
            place = charts.place_of(row, rows)
            shown = [(x(s), y(r)) for s, r in sorted(values.items())]
            if shown:
                marks.append(path(shown, class_=f"{kind} line v{place}"))
            if kind == "own":
                marks += [marker(place, *at, 3.8, class_=f"dot v{place}") for at in shown]
    dashed = "; dashed: compute infer as published" if any(published.values()) else ""
    title = f"p10 to {reference}{dashed}"
    return panel(title, "p10 ratios over batch size", _RATIO_HEIGHT, marks)


def _standalone(figure: Element, rows: Sequence[str]) -> tuple[str, str]:
    """Return a panel's title, and the panel as an SVG file with its title and legend inside."""
    title = figure.findtext("figcaption") or ""
    drawn = figure.find("svg")
    assert drawn is not None
    height = float(drawn.attrib["viewBox"].split()[3])
    legend = []
    for number, row in enumerate(rows):
        left = 6 + (number % _PER_LEGEND_ROW) * WIDTH / _PER_LEGEND_ROW
        top = height + 26 + (number // _PER_LEGEND_ROW + 0.5) * _LEGEND_ROW
        place = charts.place_of(row, rows)
        legend += [
            path([(left, top), (left + 24, top)], class_=f"own line v{place}"),
            marker(place, left + 12, top, 3.6, class_=f"dot v{place}"),
            words(row, left + 32, top + 4, class_="value"),
        ]
    whole = height + 34 + _LEGEND_ROW * -(-len(rows) // _PER_LEGEND_ROW)
    root = element(
        "svg",
        element("style", styles.chart_style(), _PICTURE_STYLE),
        words(title, 6, 18, class_="value"),
        element("g", list(drawn), transform="translate(0 24)"),
        legend,
        view_box=f"0 0 {WIDTH:g} {whole:g}",
        width=f"{1.4 * WIDTH:g}",
        xmlns="http://www.w3.org/2000/svg",
    )
    ElementTree.indent(root)
    return title, ElementTree.tostring(root, encoding="unicode") + "\n"
