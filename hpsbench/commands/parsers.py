"""Commands, actions of one, and numbers of their options, as argparse has them."""

from __future__ import annotations

import argparse
from typing import TypeVar

AnyParser = TypeVar("AnyParser", bound=argparse.ArgumentParser)


def add_command(
    commands: argparse._SubParsersAction[AnyParser], name: str, purpose: str
) -> argparse.ArgumentParser:
    """Return the parser of a new command; its errors name it as `given.parser`."""
    sentence = f"{purpose[0].upper()}{purpose[1:]}."
    parser = commands.add_parser(name, help=purpose, description=sentence)
    parser.set_defaults(parser=parser)
    return parser


def positive(text: str) -> int:
    """Return an option's whole number from 1. Raises ArgumentTypeError for anything else."""
    return _number(text, 1)


def whole(text: str) -> int:
    """Return an option's whole number from 0. Raises ArgumentTypeError for anything else."""
    return _number(text, 0)


def _number(text: str, low: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if number < low:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {low}")
    return number
