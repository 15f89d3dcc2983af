"""Options, commands, markers, outcomes, presets and exit codes are documented; links lead there."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpsbench import cli, gate, options, plugin
from hpsbench.presets import preset_names
from hpsbench.verdict import Outcome

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
#: Where a command has its options; `doctor` has so few that the README names them.
COMMAND_PAGES = {
    "baseline": DOCS / "verdict.md",
    "report": DOCS / "report.md",
    "compare": DOCS / "compare.md",
    "load": DOCS / "load.md",
    "selftest": DOCS / "selftest.md",
    "profile": DOCS / "profile.md",
    "doctor": README,
}


def documented(page: Path = README) -> str:
    return page.read_text("utf-8")


def pytest_options() -> list[str]:
    group = argparse.ArgumentParser(add_help=False)

    class Parser:
        def getgroup(self, *_: str) -> Parser:
            return self

        def addoption(self, *names: str, **settings: object) -> None:
            assert settings.get("help"), f"{names} has no help"
            group.add_argument(*names)

    options.add_options(Parser())  # type: ignore[arg-type]
    return [name for action in group._actions for name in action.option_strings]


def commands(parser: argparse.ArgumentParser, path: str = "hpsbench") -> Iterator[str]:
    """Yield each command in full."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                if not any(isinstance(a, argparse._SubParsersAction) for a in child._actions):
                    yield f"{path} {name}"
                yield from commands(child, f"{path} {name}")


def command_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a command, and of those below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from command_options(child)
        else:
            assert action.help, f"{parser.prog} {action.dest} has no help"
            yield from (o for o in action.option_strings if o not in ("-h", "--help"))


def top_commands() -> dict[str, argparse.ArgumentParser]:
    actions = cli.build_parser()._actions
    return dict(next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", documented(page), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("option", pytest_options())
def test_every_pytest_option_is_documented(option: str) -> None:
    assert f"`{option}" in documented(DOCS / "configuration.md")


@pytest.mark.parametrize("command", sorted(commands(cli.build_parser())))
def test_the_readme_names_every_command(command: str) -> None:
    assert command in documented()


@pytest.mark.parametrize(
    ("command", "option"),
    [(name, o) for name, p in top_commands().items() for o in sorted(set(command_options(p)))],
)
def test_every_option_of_a_command_is_documented_on_its_page(command: str, option: str) -> None:
    assert re.search(rf"[` ]{option}\b", documented(COMMAND_PAGES[command]))


@pytest.mark.parametrize("marker", [m.partition(":")[0] for m in plugin.MARKERS])
def test_every_marker_is_documented(marker: str) -> None:
    assert f"`{marker}`" in documented()


@pytest.mark.parametrize("outcome", [o.value for o in Outcome])
def test_every_outcome_is_documented(outcome: str) -> None:
    assert f"`{outcome}`" in documented()


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_documented(preset: str) -> None:
    assert f"`{preset}`" in documented()


@pytest.mark.parametrize(
    "code", [gate.EXIT_PASSED, gate.EXIT_REGRESSED, gate.EXIT_USAGE, gate.EXIT_NO_VERDICT]
)
def test_every_exit_status_is_documented(code: int) -> None:
    assert f"| {code} |" in documented()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", documented(page)):
        if not link.startswith(("https:", "http:")):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_page() -> None:
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\((docs/[^)#]+)", documented())}
    assert {page for page in PAGES if page.parent == DOCS} <= linked
