"""Verdicts as JUnit XML, one test case per benchmark, for CI systems that show such files.

pytest's own `--junitxml` has the tests of a session, with the verdict in their properties; this
one is built from a stored run, and has what vanished as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from xml.etree import ElementTree

from hpsbench.duets.comparisons import StoredComparison
from hpsbench.report.contents import Contents
from hpsbench.verdict import Outcome, Verdict


def suite_xml(contents: Contents) -> str:
    """Return the XML: REGRESSED is a failure, INVALID an error, and no verdict is skipped."""
    run = contents.run
    title = f"hpsbench {run.preset} on {run.machine.cls}"
    class_name = f"hpsbench.{run.preset}"
    return _xml(contents.verdicts, title, run.recorded_at, class_name, contents.accepted)


def comparison_xml(compared: StoredComparison) -> str:
    """Return the XML of a comparison, as `suite_xml` does."""
    title = f"hpsbench compare on {compared.machine}"
    return _xml(compared.verdicts, title, compared.recorded_at, "hpsbench.compare")


def _xml(
    verdicts: Sequence[Verdict],
    title: str,
    recorded_at: str,
    class_name: str,
    accepted: Collection[str] = (),
) -> str:
    kinds = [_kind(verdict) for verdict in verdicts]
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=title,
        timestamp=recorded_at,
        tests=str(len(kinds)),
        failures=str(kinds.count("failure")),
        errors=str(kinds.count("error")),
        skipped=str(kinds.count("skipped")),
    )
    for verdict in verdicts:
        _add_case(suite, verdict, class_name, accepted=verdict.benchmark in accepted)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _kind(verdict: Verdict) -> str | None:
    if verdict.outcome is Outcome.REGRESSED:
        return "failure"
    if verdict.outcome is Outcome.INVALID:
        return "error"
    return None if verdict.outcome.decided else "skipped"


def _add_case(
    suite: ElementTree.Element, verdict: Verdict, class_name: str, *, accepted: bool
) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=class_name, name=verdict.benchmark)
    properties = ElementTree.SubElement(case, "properties")
    told = [*verdict_properties(verdict), *[("accepted_as_baseline", "true")] * accepted]
    for name, value in told:
        ElementTree.SubElement(properties, "property", name=name, value=value)
    kind = _kind(verdict)
    if kind is not None:
        message = f"{verdict.outcome.value} {verdict.text}"
        entry = ElementTree.SubElement(case, kind, message=message)
        entry.text = f"hint: {verdict.hint}" if verdict.hint else None


def verdict_properties(verdict: Verdict) -> list[tuple[str, str]]:
    """Return what JUnit XML says of a verdict besides its text; changes are fractions."""
    figures = {
        "change": verdict.change,
        "low": verdict.low,
        "high": verdict.high,
        "limit": verdict.limit,
        "change_p50": verdict.change_p50,
        "limit_p50": verdict.limit_p50,
    }
    named = [(name, f"{value:.5f}") for name, value in figures.items() if value is not None]
    judged = [("statistic", verdict.statistic)] if verdict.change is not None else []
    return [("benchmark", verdict.benchmark), ("outcome", verdict.outcome.value), *judged, *named]
