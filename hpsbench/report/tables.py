"""The tables of the HTML report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hpsbench.figures import Figures, Stages, batch_sizes_of, compared, reference_of_run
from hpsbench.published import COMPUTE_INFER, THROUGHPUT, UNITS, Publication, PublishedTable
from hpsbench.report import charts, notation
from hpsbench.report.contents import ACCEPTED_HINT, Contents
from hpsbench.report.elements import Content, Element, element
from hpsbench.report.forest import forest, forest_scale
from hpsbench.reproduction import reproduction
from hpsbench.runs import Run
from hpsbench.stages import StageProfile
from hpsbench.verdict import Outcome, Verdict

#: A group of undisputed outcomes longer than this starts folded.
_LONGEST_OPEN = 12
#: The columns of this run that published tables stand beside, and their unit.
_QUANTITIES = {COMPUTE_INFER: "infer, ms", THROUGHPUT: "k samples/s"}
_QUIET = (Outcome.PASS, Outcome.NO_BASELINE)


def verdict_group(outcome: Outcome, verdicts: Sequence[Verdict], span: float) -> Element:
    """Return the verdicts of one outcome: what it means, what to do, and each one's figures."""
    heading = element(
        "summary",
        element("span", outcome.value, class_="badge"),
        element("b", f" {len(verdicts)} "),
        element("span", notation.meaning(outcome), class_="meaning"),
    )
    folded = outcome in _QUIET and len(verdicts) > _LONGEST_OPEN
    listings: list[Content] = []
    for hint in dict.fromkeys(verdict.hint for verdict in verdicts):
        alike = [verdict for verdict in verdicts if verdict.hint == hint]
        if hint:
            done = " accepted" if hint == ACCEPTED_HINT else ""
            listings.append(element("p", sentence(hint), class_=f"hint{done}"))
        listings.append(_verdict_listing(alike, span))
    return element(
        "details",
        heading,
        *listings,
        class_=f"outcome {outcome.value.lower()}",
        open=None if folded else "",
    )


def _verdict_listing(verdicts: Sequence[Verdict], span: float) -> Element:
    if any(verdict.change is not None for verdict in verdicts):
        return _verdict_table(verdicts, span)
    items = [
        element("li", element("b", ", ".join(names)), f": {text}")
        for text, names in notation.by_sentence(verdicts).items()
    ]
    return element("ul", items, class_="verdict-list")


def _verdict_table(verdicts: Sequence[Verdict], span: float) -> Element:
    names = ("benchmark", "change", "interval", "limit", "p50 change")
    rows = []
    for verdict in verdicts:
        p50 = f"{notation.change(verdict.change_p50)}, limit {notation.limit(verdict.limit_p50)}"
        texts = (
            f"{verdict.statistic} {notation.change(verdict.change)}",
            notation.interval(verdict.low, verdict.high),
            notation.limit(verdict.limit),
            p50 if verdict.change_p50 is not None else notation.DASH,
        )
        name = element("th", element("b", verdict.benchmark), scope="row")
        if verdict.outcome is not Outcome.PASS:
            name.append(element("p", *sentence(notation.said(verdict)), class_="said"))
        cells = [
            element("td", text, data_label=label)
            for label, text in zip(names[1:], texts, strict=True)
        ]
        rows.append(element("tr", name, cells, element("td", forest(verdict, span))))
    heads = [element("th", name, scope="col") for name in names]
    scale = element("th", forest_scale(span), scope="col")
    return _scrolled(
        "Verdicts",
        element(
            "table",
            element("thead", element("tr", heads, scale)),
            element("tbody", rows),
            class_="verdicts",
        ),
    )


def published_beside(
    contents: Contents, cells: Mapping[tuple[str, int], Figures]
) -> list[tuple[Publication, PublishedTable]]:
    """Return the published tables that have a figure of what the run measured."""
    return [
        (publication, table)
        for publication in contents.publications
        for table in publication.tables
        if any(size in table.values_of(variant) for variant, size in cells)
    ]


def figure_table(
    contents: Contents, cells: Mapping[tuple[str, int], Figures], variants: Sequence[str]
) -> Element:
    """Return the table of batch sizes and variants, with the published figures beside them."""
    beside = published_beside(contents, cells)
    ratio = f"p10 : {reference_of_run(contents.run)}"
    own = ("p50, ms", "p10, ms", *_QUANTITIES.values(), ratio)
    groups = element(
        "tr",
        element("td"),
        element("th", "this run", colspan=len(own), scope="colgroup"),
        [
            element(
                "th",
                f"{publication.name}, {_QUANTITIES[table.quantity]}",
                element("br"),
                f"ratios to {table.native}",
                colspan=3,
                scope="colgroup",
                class_="apart",
            )
            for publication, table in beside
        ],
    )
    names = [*own, *("published", "ratio", "here") * len(beside)]
    heads = [
        element("th", name, scope="col", class_=_apart(number, len(own)))
        for number, name in enumerate(names)
    ]
    bodies = []
    for size in batch_sizes_of(contents.run):
        measured = [variant for variant in variants if (variant, size) in cells]
        # The name stays in its column, which a narrow window keeps in sight.
        group = (
            element("th", f"batch {size}", scope="rowgroup"),
            element("td", colspan=len(names)),
        )
        rows = [element("tr", *group, class_="group")] if measured else []
        for variant in measured:
            texts = [*_own_texts(cells[variant, size])]
            for _, table in beside:
                found = compared(table, cells, variant, size)
                texts += [
                    notation.published(table.quantity, found.published),
                    notation.ratio(found.published_ratio),
                    notation.ratio(found.own_ratio),
                ]
            rows.append(
                element(
                    "tr",
                    element("th", variant, scope="row"),
                    [
                        element("td", text, class_=_apart(number, len(own)))
                        for number, text in enumerate(texts)
                    ],
                )
            )
        if rows:
            bodies.append(element("tbody", rows))
    head = element("thead", groups, element("tr", element("th", "variant", scope="col"), heads))
    whole = element("table", head, bodies, class_="figures")
    return _scrolled("Figures by batch size and variant", whole)


def stage_table(split: Mapping[tuple[str, int], Stages], variants: Sequence[str]) -> Element:
    """Return the figures of the stage bars, folded."""
    rows = [
        (
            str(size),
            variant,
            *(
                notation.milliseconds(getattr(split[variant, size], field))
                for _, field in charts.STAGES
            ),
            notation.milliseconds(split[variant, size].total_ns),
        )
        for size in sorted({size for _, size in split})
        for variant in variants
        if (variant, size) in split
    ]
    names = ("batch", "variant", *(name for name, _ in charts.STAGES), "all")
    summary = element("summary", "The same in figures, ms")
    return element("details", summary, plain_table("Stages", names, rows, left=2), class_="fold")


def stage_percentile_table(
    profiles: Mapping[tuple[str, int], StageProfile], variants: Sequence[str]
) -> Element:
    """Return p50 and p99 of every stage of the traced requests, folded."""
    rows = []
    for size in sorted({size for _, size in profiles}):
        for variant in (v for v in variants if (v, size) in profiles):
            profile = profiles[variant, size]
            summaries = [*profile.stages.values(), profile.whole]
            rows.append(
                (
                    str(size),
                    variant,
                    *(
                        f"{notation.milliseconds(s.p50_ns)} / {notation.milliseconds(s.p99_ns)}"
                        for s in summaries
                    ),
                    str(profile.requests),
                )
            )
    stages = next(iter(profiles.values())).stages
    names = ("batch", "variant", *(s.replace("_", " ") for s in stages), "whole", "requests")
    summary = element("summary", "Traced requests, p50 / p99 of each stage, ms")
    return element("details", summary, plain_table("Traced", names, rows, left=2), class_="fold")


def publication_details(publication: Publication) -> Element:
    """Return everything published by one source, folded."""
    versions = ", ".join(f"{name} {version}" for name, version in publication.versions.items())
    parts: list[Content] = [
        element("p", publication.notes),
        facts(
            [
                ("hardware", publication.hardware),
                ("versions", versions or "not given"),
                ("source", publication.source),
            ]
        ),
    ]
    parts += [_published_table(table) for table in publication.tables]
    if publication.figures:
        rows = [(f.variant, f.name, f"{f.value:.4g} {f.unit}") for f in publication.figures]
        parts.append(plain_table("Published figures", ("variant", "what", "value"), rows, left=2))
    summary = element("summary", element("b", publication.name), f", {publication.title}")
    return element("details", summary, *parts, class_="fold")


def environment(run: Run) -> list[Content]:
    """Return what was measured on and with, and the command that measures it again."""
    commit = run.under_test.get("commit")
    where = "in this project" if commit is None else f"at commit {commit}"
    return [
        element("p", f"To measure the same again, {where} with the same versions:"),
        element("pre", element("code", reproduction(run)), tabindex=0),
        element(
            "div",
            _fact_block("Machine", [("class", run.machine.cls), *run.machine.fingerprint.items()]),
            _fact_block("Under test", run.under_test.items()),
            _fact_block(
                f"Workload {run.workload.digest}",
                ((name, str(value)) for name, value in run.workload.settings.items()),
            ),
            class_="columns",
        ),
    ]


def _own_texts(cell: Figures) -> list[str]:
    return [
        notation.milliseconds(cell.p50_ns),
        notation.milliseconds(cell.p10_ns),
        notation.milliseconds(cell.compute_infer_ns),
        notation.significant(cell.samples_per_s / 1e3),
        notation.ratio(cell.ratio),
    ]


def _apart(number: int, own: int) -> str | None:
    return "apart" if number >= own and (number - own) % 3 == 0 else None


def _published_table(table: PublishedTable) -> Element:
    columns = [table.values_of(column.variant) for column in table.columns]
    scale = UNITS[table.quantity][table.unit]
    whole = all(value.is_integer() for column in table.columns for value in column.values)
    digits = 0 if whole else 3
    rows = [
        (str(size), *(f"{values[size] / scale:.{digits}f}" for values in columns))
        for size in table.batch_sizes
    ]
    quantity = table.quantity.replace("_", " ")
    names = ("batch", *(f"{c.label} ({c.variant})" for c in table.columns))
    return plain_table(f"{quantity}, {table.unit}", names, rows, left=0, caption=True)


def plain_table(
    name: str,
    names: Sequence[str],
    rows: Iterable[Sequence[Content]],
    *,
    left: int,
    caption: bool = False,
) -> Element:
    """Return a table that scrolls by itself, its first `left` columns texts; `name` is for readers.

    With `caption` the name stands above it.
    """
    return _scrolled(
        name,
        element(
            "table",
            element("caption", name) if caption else None,
            element("thead", _row("th", names, left, scope="col")),
            element("tbody", [_row("td", row, left) for row in rows]),
        ),
    )


def _row(tag: str, texts: Sequence[Content], left: int, **attributes: object) -> Element:
    cells = [
        element(tag, text, class_="text" if number < left else "number", **attributes)
        for number, text in enumerate(texts)
    ]
    return element("tr", cells)


def _scrolled(name: str, table: Element) -> Element:
    # Focusable, so that a keyboard can scroll what a narrow window cuts off.
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)


def _fact_block(name: str, named: Iterable[tuple[str, str]]) -> Element:
    return element("div", element("h3", name), facts(named))


def facts(named: Iterable[tuple[str, str]]) -> Element:
    """Return a list of names and what is said of each."""
    return element("dl", [(element("dt", name), element("dd", text))[i]
                          for name, text in named for i in (0, 1)])  # fmt: skip


def sentence(text: str) -> list[str | Element]:
    """Return a text with a capital, and what stands in backquotes as code."""
    parts = text.split("`")
    first = parts[0][:1].upper() + parts[0][1:]
    return [
        element("code", part) if number % 2 else part
        for number, part in enumerate([first, *parts[1:]])
    ]
