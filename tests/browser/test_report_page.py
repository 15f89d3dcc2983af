"""The report in a real browser: on a phone and on a desk, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpsbench.report.contents import Contents
from hpsbench.report.html import page
from tests.browser.chromium import Chromium, chromium, find_chromium
from tests.scripted_report import every_outcome, noisy

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        find_chromium() is None, reason="no Chromium: apt-get install chromium, as CI does"
    ),
]

#: What a browser says when something is wrong, or when somebody prints from a script.
COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(every_outcome()), "utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window_and_nothing_complains(
    browser: Chromium, report: Path, width: int, scheme: str
) -> None:
    browser.show(report.as_uri(), width=width, scheme=scheme)
    screenshot = report.with_name(f"{width}-{scheme}.png")
    browser.screenshot(screenshot)

    assert [e for e in browser.events if e["method"] in COMPLAINTS] == []
    requests = [e for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [e["params"]["request"]["url"] for e in requests] == [report.as_uri()]
    root = "document.documentElement"
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), screenshot
    assert browser.evaluate("document.compatMode") == "CSS1Compat"
    dark = (
        browser.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(252, 252, 251)"
    )
    assert dark == (scheme == "dark")
    assert screenshot.stat().st_size > 50_000


@pytest.mark.parametrize("contents", [every_outcome, noisy], ids=lambda c: c.__name__)
def test_the_page_opens_within_a_second_and_is_small(
    browser: Chromium, tmp_path: Path, contents: Callable[[], Contents]
) -> None:
    report = tmp_path / "report.html"
    report.write_text(page(contents()), "utf-8")
    assert report.stat().st_size < 6e6
    # From the click to the load event, as the browser itself times it. What it takes alone is the
    # least of a few times: the machine of a test has other work too.
    timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    loaded_ms = []
    for _ in range(5):
        browser.show(report.as_uri(), width=1280, scheme="light")
        loaded_ms.append(browser.evaluate(timing))
    assert 0 < min(loaded_ms) < 1000


def test_what_is_cut_off_can_be_scrolled_to(browser: Chromium, report: Path) -> None:
    browser.show(report.as_uri(), width=390, scheme="light")
    hidden = """[...document.querySelectorAll("table, svg, pre, p, li, dl")].filter(shown =>
        shown.getBoundingClientRect().right > innerWidth + 1 && !shown.closest(".scroll"))"""
    assert browser.evaluate(f"{hidden}.map(shown => shown.textContent.slice(0, 60))") == []


def test_published_figures_are_in_sight_beside_ours(browser: Chromium, report: Path) -> None:
    """On a desk at once; on a phone by scrolling the table, whose variants stay in sight."""
    table = "document.querySelector('#figures .scroll')"
    browser.show(report.as_uri(), width=1280, scheme="light")
    assert browser.evaluate(f"{table}.scrollWidth <= {table}.clientWidth")
    browser.show(report.as_uri(), width=390, scheme="light")
    browser.evaluate(f"{table}.scrollLeft = {table}.scrollWidth")
    row = f"{table}.querySelectorAll('tbody tr:nth-child(2) > *')"
    boxes = f"[...{row}].map(cell => cell.getBoundingClientRect())"
    places = browser.evaluate(f"{boxes}.map(box => [box.left, box.right])")
    (left, right), (last_left, last_right) = places[0], places[-1]
    assert 0 <= left < right < last_left < last_right <= 390
    assert browser.evaluate("scrollX") == 0


@pytest.mark.parametrize("contents", [every_outcome, noisy], ids=lambda c: c.__name__)
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_in_a_chart_is_cut_off_and_no_text_touches_another(
    browser: Chromium, tmp_path: Path, width: int, contents: Callable[[], Contents]
) -> None:
    report = tmp_path / "report.html"
    report.write_text(page(contents()), "utf-8")
    browser.show(report.as_uri(), width=width, scheme="light")
    found = browser.evaluate(
        """[...document.querySelectorAll(".panel svg, svg.forest")].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            if (!frame.width) return [];
            const texts = [...svg.querySelectorAll("text")].map(text =>
                ({text: text.textContent, box: text.getBoundingClientRect()}));
            const cut = texts.filter(({box}) =>
                box.left < frame.left - 1 || box.right > frame.right + 1 ||
                box.top < frame.top - 2 || box.bottom > frame.bottom + 2);
            const touching = texts.filter(({box: a}, i) => texts.slice(i + 1).some(({box: b}) =>
                a.left < b.right && b.left < a.right &&
                a.top + 2 < b.bottom && b.top + 2 < a.bottom));
            const drawn = [...svg.querySelectorAll("circle, polygon, path, rect, line")].filter(
                shape => {
                    const box = shape.getBoundingClientRect();
                    return box.left < frame.left - 2 || box.right > frame.right + 2;
                }).map(shape => ({text: shape.outerHTML}));
            return [...cut, ...touching, ...drawn].map(({text}) =>
                svg.parentNode.textContent.slice(0, 40) + ": " + text);
        })"""
    )
    assert found == []
    assert browser.evaluate('document.querySelectorAll(".panel svg text").length') > 200


def test_text_is_large_enough_on_a_phone(browser: Chromium, report: Path) -> None:
    browser.show(report.as_uri(), width=390, scheme="light")
    heights = browser.evaluate(
        '[...document.querySelectorAll(".panel text")].map(t => t.getBoundingClientRect().height)'
    )
    assert min(heights) > 10
