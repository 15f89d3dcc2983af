"""The charts of a run: its figures as panels, a small one per batch size wherever it can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from hpsbench.figures import (
    PERCENTILES,
    Figures,
    HistoryPoint,
    LaunchRatios,
    Stages,
)
from hpsbench.published import COMPUTE_INFER, Publication
from hpsbench.report import notation
from hpsbench.report.elements import Element, element
from hpsbench.report.panels import (
    ROW,
    WIDTH,
    Frame,
    bar,
    change_span,
    line,
    linear_scale,
    linear_ticks,
    log_scale,
    log_ticks,
    marker,
    panel,
    path,
    percent_ticks,
    row_name,
    rows_frame,
    words,
    x_axis,
    y_axis,
)
from hpsbench.workload import split_row

T = TypeVar("T")

#: Each has its colour and marker wherever it appears; others take the places after these.
VARIANTS = (
    "native_tf", "hps_tf", "hps_ensemble", "native_tf_hybrid", "hps_onnx_fp32", "hps_onnx_fp16",
    "fused", "unfused",
)  # fmt: skip

#: Stages of a request in their order, as Triton names them, and their field in `Stages`.
STAGES = (
    ("client and transport", "client_ns"),
    ("queue", "queue_ns"),
    ("compute input", "compute_input_ns"),
    ("compute infer", "compute_infer_ns"),
    ("compute output", "compute_output_ns"),
)

#: A variant's figures by batch size.
Cells = Mapping[tuple[str, int], Figures]


def place_of(variant: str, variants: Sequence[str]) -> int:
    """Return the number of a variant's colour and marker, the same whatever its keys."""
    variant = split_row(variant)[0]
    variants = list(dict.fromkeys(split_row(row)[0] for row in variants))
    if variant in VARIANTS:
        return VARIANTS.index(variant)
    others = [v for v in variants if v not in VARIANTS]
    return len(VARIANTS) + others.index(variant) if variant in others else len(VARIANTS)


def swatch(place: int, *, dashed: bool = False) -> Element:
    """Return the sample of a line that stands in a legend."""
    kind = "published" if dashed else "own"
    return element(
        "svg",
        path([(1, 6), (25, 6)], class_=f"{kind} line v{place}"),
        None if dashed else marker(place, 13, 6, 3.6, class_=f"dot v{place}"),
        view_box="0 0 26 12",
        class_="swatch",
        aria_hidden="true",
    )


def client_latency(cells: Cells, variants: Sequence[str]) -> list[Element]:
    """Return the panel of the client's median latency over batch size, both logarithmic."""
    panels = []
    for keys in dict.fromkeys(split_row(row)[1] for row in variants):
        own = {
            row: {size: c.p50_ns for (name, size), c in cells.items() if name == row}
            for row in variants
            if split_row(row)[1] == keys
        }
        title = f"Client latency, p50{f', {keys} keys' if keys else ''}"
        panels += _latency(title, "client, median", own, {}, variants)
    return panels


def server_latency(
    cells: Cells, variants: Sequence[str], publications: Iterable[Publication]
) -> list[Element]:
    """Return a panel per published table: its variants' `compute infer`, published and here."""
    panels = []
    for publication in publications:
        table = publication.table(COMPUTE_INFER)
        if table is None or not table.is_line:
            continue
        columns = {column.variant: table.values_of(column.variant) for column in table.columns}
        own = {
            variant: {
                size: cell.compute_infer_ns
                for (name, size), cell in cells.items()
                if name == variant and cell.compute_infer_ns is not None
            }
            for variant in variants
            if variant in columns
        }
        if any(own.values()):
            title = f"Compute infer, beside {publication.name}"
            panels += _latency(title, "compute infer, mean", own, columns, variants)
    return panels


def _latency(
    title: str,
    quantity: str,
    own: Mapping[str, Mapping[int, float]],
    published: Mapping[str, Mapping[int, float]],
    variants: Sequence[str],
) -> list[Element]:
    every = [*own.values(), *published.values()]
    sizes = sorted({size for values in every for size in values})
    values_ms = [ns / 1e6 for values in every for ns in values.values()]
    if not values_ms:
        return []
    height = 330.0
    frame = Frame(left=50, right=WIDTH - 14, top=30, bottom=height - 42)
    x = log_scale(sizes[0] / 1.15, sizes[-1] * 1.15, frame.left, frame.right)
    low, high = min(values_ms) / 1.15, max(values_ms) * 1.15
    y = log_scale(low, high, frame.bottom, frame.top)
    marks = [
        *y_axis(frame, y, [(t, f"{t:g}") for t in log_ticks(low, high)], "ms"),
        *x_axis(frame, x, [(size, str(size)) for size in sizes], "batch size"),
    ]
    for variant, values in published.items():
        points = [(x(size), y(ns / 1e6)) for size, ns in values.items()]
        place = place_of(variant, variants)
        marks.append(path(points, class_=f"published line v{place}", tip=f"{variant}, published"))
    for variant, values in own.items():
        place = place_of(variant, variants)
        points = [(x(size), y(values[size] / 1e6)) for size in sorted(values)]
        if points:
            marks.append(path(points, class_=f"own line v{place}"))
        for (px, py), size in zip(points, sorted(values), strict=True):
            tip = f"{variant}, batch {size}: {notation.milliseconds(values[size])} ms"
            marks.append(marker(place, px, py, 3.8, class_=f"dot v{place}", tip=tip))
    return [panel(title, f"{quantity} latency in milliseconds over batch size", height, marks)]


def launch_spread(
    launches: Mapping[tuple[str, int], LaunchRatios], variants: Sequence[str]
) -> list[Element]:
    """Return a panel per batch size: each launch's ratio as a change from the baseline's."""
    widest = change_span(
        abs(change)
        for ratios in launches.values()
        for change in (*ratios.own, *ratios.stored, ratios.limit or 0.0)
    )
    panels = []
    for place_name, rows in _by_batch_size(launches, variants).items():
        frame, marks = rows_frame(len(rows))
        x = linear_scale(-widest, widest, frame.left, frame.right)
        marks += x_axis(frame, x, percent_ticks(widest), "change of the ratio, one dot a launch")
        for number, (variant, ratios) in enumerate(rows):
            middle = frame.top + (number + 0.5) * ROW
            place = place_of(variant, variants)
            if ratios.limit is not None:
                reach = min(ratios.limit, widest)
                tip = f"limit {notation.limit(ratios.limit)}"
                band = bar(x(-reach), middle - 12, x(reach), middle + 12, class_="band", tip=tip)
                marks.append(band)
            marks.append(row_name(variant, middle, place))
            marks.append(line(x(0), middle - 12, x(0), middle + 12, class_="zero"))
            for kind, changes, at in (
                ("stored", ratios.stored, middle - 5),
                ("dot", ratios.own, middle + (5 if ratios.stored else 0)),
            ):
                for launch, change in enumerate(changes, start=1):
                    tip = f"{variant}, {'baseline' if kind == 'stored' else 'this run'}, "
                    tip += f"launch {launch}: {ratios.statistic.value} {notation.change(change)}"
                    drawn = x(max(-widest, min(widest, change)))
                    marks.append(marker(place, drawn, at, 3.6, class_=f"{kind} v{place}", tip=tip))
        title = f"Batch {place_name}"
        text = f"ratios of launches at batch size {place_name}, as changes from the baseline"
        panels.append(panel(title, text, frame.bottom + 42, marks))
    return panels


def distributions(
    curves: Mapping[tuple[str, int], Sequence[float]], variants: Sequence[str]
) -> list[Element]:
    """Return a panel per batch size: the share of requests answered within a time."""
    panels = []
    height = 280.0
    for place_name, rows in _by_batch_size(curves, variants).items():
        rows = [(variant, curve) for variant, curve in rows if curve]
        if not rows:
            continue
        frame = Frame(left=44, right=WIDTH - 14, top=30, bottom=height - 42)
        low = min(curve[0] for _, curve in rows) / 1e6 / 1.03
        high = max(curve[-1] for _, curve in rows) / 1e6 * 1.03
        x = log_scale(low, high, frame.left, frame.right)
        y = linear_scale(0, 100, frame.bottom, frame.top)
        marks = [
            *y_axis(frame, y, [(t, f"{t}%") for t in (0, 25, 50, 75, 100)], "requests"),
            *x_axis(frame, x, [(t, f"{t:g}") for t in log_ticks(low, high)], "client latency, ms"),
        ]
        for variant, curve in rows:
            points = [(x(ns / 1e6), y(q)) for q, ns in zip(PERCENTILES, curve, strict=True)]
            place = place_of(variant, variants)
            marks.append(path(points, class_=f"own line v{place}", tip=variant))
            for q in (10, 50, 90):
                ns = curve[PERCENTILES.index(q)]
                tip = f"{variant}, p{q}: {notation.milliseconds(ns)} ms"
                at = (x(ns / 1e6), y(q))
                marks.append(marker(place, *at, 3.6, class_=f"dot v{place}", tip=tip))
        text = f"distribution of client latency at batch size {place_name}, from p1 to p99"
        panels.append(panel(f"Batch {place_name}", text, height, marks))
    return panels


def stage_bars(stages: Mapping[tuple[str, int], Stages], variants: Sequence[str]) -> list[Element]:
    """Return a panel per batch size: the mean latency of each variant, split into its stages."""
    panels = []
    for place_name, rows in _by_batch_size(stages, variants).items():
        frame, marks = rows_frame(len(rows), right=WIDTH - 56)
        longest_ms = max(s.total_ns for _, s in rows) / 1e6
        x = linear_scale(0, longest_ms, frame.left, frame.right)
        ticks = [(t, f"{t:g}") for t in linear_ticks(0, longest_ms)]
        marks += x_axis(frame, x, ticks, "mean latency, ms")
        for number, (variant, split) in enumerate(rows):
            middle = frame.top + (number + 0.5) * ROW
            marks.append(row_name(variant, middle, place_of(variant, variants)))
            start_ms = 0.0
            for place, (name, field) in enumerate(STAGES):
                ns = getattr(split, field)
                end_ms = start_ms + ns / 1e6
                tip = f"{variant}, {name}: {notation.milliseconds(ns)} ms"
                box = (x(start_ms), middle - 9, x(end_ms), middle + 9)
                marks.append(bar(*box, class_=f"stage s{place}", tip=tip))
                start_ms = end_ms
            total = notation.milliseconds(split.total_ns)
            marks.append(words(total, x(start_ms) + 5, middle + 4, class_="value"))
        text = f"stages of the mean latency at batch size {place_name}"
        panels.append(panel(f"Batch {place_name}", text, frame.bottom + 42, marks))
    return panels


def histories(
    points: Mapping[tuple[str, int], Sequence[HistoryPoint]], variants: Sequence[str]
) -> list[Element]:
    """Return a panel per batch size: each session's ratio as a change from their median."""
    panels = []
    height = 250.0
    widest = change_span(abs(point.change) for line in points.values() for point in line)
    for place_name, rows in _by_batch_size(points, variants).items():
        sessions = {point.run_id: point for _, line in rows for point in line}
        ordered = sorted(sessions.values(), key=lambda point: (point.recorded_at, point.run_id))
        if len(ordered) < 2:
            continue
        frame = Frame(left=50, right=WIDTH - 20, top=30, bottom=height - 42)
        places = {point.run_id: float(number) for number, point in enumerate(ordered)}
        x = linear_scale(0, len(ordered) - 1, frame.left + 8, frame.right)
        y = linear_scale(-widest, widest, frame.bottom, frame.top)
        ticks = [(places[point.run_id], _session_name(point)) for point in ordered]
        marks = [
            *y_axis(frame, y, percent_ticks(widest), "change of the ratio from the median"),
            *x_axis(frame, x, ticks, "session, the newest to the right"),
            line(frame.left, y(0), frame.right, y(0), class_="zero"),
        ]
        for variant, of_variant in rows:
            place = place_of(variant, variants)
            drawn = [
                (x(places[p.run_id]), y(max(-widest, min(widest, p.change)))) for p in of_variant
            ]
            marks.append(path(drawn, class_=f"own line v{place}"))
            for point, at in zip(of_variant, drawn, strict=True):
                kind = "stored" if point.stored else "dot"
                tip = f"{variant}, {point.recorded_at}, {point.commit or 'no commit'}: "
                tip += f"{point.statistic.value} ratio {notation.ratio(point.ratio)}, "
                tip += notation.change(point.change)
                marks.append(marker(place, *at, 3.8, class_=f"{kind} v{place}", tip=tip))
        text = f"ratios of the sessions at batch size {place_name}, as changes from their median"
        panels.append(panel(f"Batch {place_name}", text, height, marks))
    return panels


def _by_batch_size(
    cells: Mapping[tuple[str, int], T], variants: Sequence[str]
) -> dict[str, list[tuple[str, T]]]:
    """Return the rows of each batch size and key stream, by how a panel is called: `32, zipf`."""
    places: dict[str, list[tuple[str, T]]] = {}
    for size in sorted({size for _, size in cells}):
        for row in variants:
            if (row, size) in cells:
                keys = split_row(row)[1]
                name = f"{size}, {keys} keys" if keys else str(size)
                places.setdefault(name, []).append((row, cells[row, size]))
    return places


def _session_name(point: HistoryPoint) -> str:
    return point.commit[:7] if point.commit else point.recorded_at[5:16].replace("T", " ")
