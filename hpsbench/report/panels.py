"""One panel of a chart as SVG: a frame, its scales, and the marks that every chart draws with.

Written by hand instead of with a plotting package: plotly's script alone is 4.5 MB, more than
ten times the largest page, and this page needs no script at all. A panel is `WIDTH` units wide,
about what a phone shows, so that its text has the same size there as beside others on a desktop.
Colours come from the page's style sheet, by class, and so follow the reader's light or dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hpsbench.report.elements import Content, Element, element
from hpsbench.report.notation import MINUS

WIDTH = 420.0
FONT = 12.0
_WIDE = "+%\N{MINUS SIGN}"
#: The height of one named row.
ROW = 30.0
#: Changes beyond half or double are drawn at the edge.
_WIDEST_CHANGE = 1.0
_NARROWEST_CHANGE = 0.05

#: A position on an axis from a value.
Scale = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The rectangle that data is drawn in, in the panel's units."""

    left: float
    right: float
    top: float
    bottom: float


def panel(title: str, description: str, height: float, *marks: Content) -> Element:
    """Return a figure with its heading; `description` is what a screen reader says of it."""
    return element(
        "figure",
        element("figcaption", title),
        element(
            "svg",
            element("title", description),
            *marks,
            view_box=f"0 0 {WIDTH:g} {height:g}",
            role="img",
        ),
        class_="panel",
    )


def log_scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return the scale that puts `low` at `start` and `high` at `end`, both positive."""
    span = math.log(high / low) or 1.0
    return lambda value: start + (end - start) * math.log(value / low) / span


def linear_scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return the scale that puts `low` at `start` and `high` at `end`."""
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / span


def log_ticks(low: float, high: float, *, most: int = 7) -> list[float]:
    """Return round numbers from `low` to `high`: powers of ten, and others between that fit."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps]
        shown = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(shown) < 2:
            return linear_ticks(low, high, most=4)
        if len(shown) <= most:
            return shown
    return shown[:: math.ceil(len(shown) / most)]


def linear_ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s * power for s in (1, 2, 5, 10) if (high - low) / (s * power) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def x_axis(
    frame: Frame, scale: Scale, ticks: Iterable[tuple[float, str]], label: str
) -> list[Element]:
    """Return grid lines and labels below the frame; labels that would touch are left out."""
    placed = []
    marks = []
    for value, text in ticks:
        x = scale(value)
        marks.append(line(x, frame.top, x, frame.bottom, class_="grid"))
        half = text_width(text) / 2
        placed.append((min(x, WIDTH - half), half, text))
    # The last is the one that a reader looks for; the others give way to it.
    free_from, last_from = -math.inf, placed[-1][0] - placed[-1][1] if placed else 0.0
    for number, (x, half, text) in enumerate(placed):
        is_last = number == len(placed) - 1
        if is_last or (x - half >= free_from and x + half + 6 <= last_from):
            marks.append(words(text, x, frame.bottom + 18, anchor="middle"))
            free_from = x + half + 6
    middle = (frame.left + frame.right) / 2
    marks.append(words(label, middle, frame.bottom + 35, anchor="middle", class_="label"))
    return marks


def y_axis(
    frame: Frame, scale: Scale, ticks: Iterable[tuple[float, str]], label: str
) -> list[Element]:
    """Return grid lines and labels left of the frame; `label` stands above them."""
    marks = [words(label, 2, frame.top - 10, class_="label")]
    for value, text in ticks:
        y = scale(value)
        marks.append(line(frame.left, y, frame.right, y, class_="grid"))
        marks.append(words(text, frame.left - 6, y + FONT / 3, anchor="end"))
    return marks


def words(
    text: str, x: float, y: float, *, anchor: str | None = None, class_: str | None = None
) -> Element:
    """Return a text whose baseline is at `y`."""
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def text_width(text: str) -> float:
    """Return about how wide a label is, in the widest of the usual fonts."""
    return FONT * sum(0.95 if character in _WIDE else 0.64 for character in text)


def line(x1: float, y1: float, x2: float, y2: float, *, class_: str) -> Element:
    """Return a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def bar(
    left: float, top: float, right: float, bottom: float, *, class_: str, tip: str | None = None
) -> Element:
    """Return a filled rectangle; `tip` shows when it is pointed at."""
    return element(
        "rect",
        _tip(tip),
        x=left,
        y=top,
        width=max(0.0, right - left),
        height=max(0.0, bottom - top),
        class_=class_,
    )


def path(points: Sequence[tuple[float, float]], *, class_: str, tip: str | None = None) -> Element:
    """Return a line through points."""
    drawn = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", _tip(tip), d=drawn, class_=class_)


#: Outlines within a circle of radius 1: what tells lines apart where colours do not.
_SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    ((0, -1.15), (1.05, 0.75), (-1.05, 0.75)),
    ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    ((0, 1.15), (1.05, -0.75), (-1.05, -0.75)),
    ((-1.1, -0.5), (0, -1.1), (1.1, -0.5), (1.1, 0.5), (0, 1.1), (-1.1, 0.5)),
)


def marker(
    shape: int, x: float, y: float, radius: float, *, class_: str, tip: str | None = None
) -> Element:
    """Return the marker number `shape`: a circle, a square, triangles, a diamond, a hexagon."""
    outline = _SHAPES[shape % len(_SHAPES)]
    if not outline:
        return element("circle", _tip(tip), cx=x, cy=y, r=radius, class_=class_)
    points = " ".join(f"{x + dx * radius:.1f},{y + dy * radius:.1f}" for dx, dy in outline)
    return element("polygon", _tip(tip), points=points, class_=class_)


def rows_frame(
    count: int, *, left: float = 138, right: float = WIDTH - 14
) -> tuple[Frame, list[Element]]:
    """Return the frame of so many named rows, each `ROW` high, and the list of its marks."""
    frame = Frame(left=left, right=right, top=8, bottom=8 + count * ROW)
    return frame, []


def row_name(name: str, middle: float, place: int) -> Element:
    """Return a row's name left of its frame, with the marker of its place."""
    return element(
        "g",
        marker(place, 8, middle, 4, class_=f"dot v{place}"),
        words(name, 20, middle + 4, class_="value"),
    )


def change_span(changes: Iterable[float]) -> float:
    """Return the change at the edges of an axis that shows these, and none beyond double."""
    widest = max([_NARROWEST_CHANGE, *changes])
    return min(widest * 1.08, _WIDEST_CHANGE)


def percent_ticks(widest: float, *, most: int = 6) -> list[tuple[float, str]]:
    """Return the ticks of an axis of changes, as percent."""
    ticks = linear_ticks(-widest, widest, most=most)
    digits = 0 if all(math.isclose(t * 100, round(t * 100), abs_tol=1e-6) for t in ticks) else 1
    return [(t, f"{t:+.{digits}%}".replace("-", MINUS) if abs(t) > 1e-9 else "0") for t in ticks]


def _tip(text: str | None) -> Element | None:
    return None if text is None else element("title", text)
