"""The style sheets: `charts.css` of what any chart is drawn with, `page.css` of the page around it.

Apart, so that the pictures of docs/results change with their own rules and not with the page's.
"""

from __future__ import annotations

from importlib import resources


def chart_style() -> str:
    """Return the rules that a chart needs wherever it stands: axes, lines, markers, colours."""
    return _sheet("charts.css")


def page_style() -> str:
    """Return the rules of the page, its charts' included."""
    return chart_style() + _sheet("page.css")


def _sheet(name: str) -> str:
    return (resources.files("hpsbench.report") / name).read_text("utf-8")
