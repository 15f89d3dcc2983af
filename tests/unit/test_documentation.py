"""Every option, command, marker, outcome, preset and exit code stands in README.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpsbench import cli, gate, options, plugin
from hpsbench.config import preset_names
from hpsbench.verdict import Outcome

README = Path(__file__).parents[2] / "README.md"


def documented() -> str:
    return README.read_text("utf-8")


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
    """Yield each command in full and, with it, each of its options."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield f"{path} {name}" if not _has_commands(child) else name
                yield from commands(child, f"{path} {name}")
        else:
            assert action.help, f"{path} {action.dest} has no help"
            yield from (o for o in action.option_strings if o not in ("-h", "--help"))


def _has_commands(parser: argparse.ArgumentParser) -> bool:
    return any(isinstance(a, argparse._SubParsersAction) for a in parser._actions)


@pytest.mark.parametrize("option", pytest_options())
def test_every_pytest_option_is_documented(option: str) -> None:
    assert f"{option}" in documented()


@pytest.mark.parametrize("word", sorted(set(commands(cli.build_parser()))))
def test_every_command_and_its_options_are_documented(word: str) -> None:
    assert word in documented()


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
