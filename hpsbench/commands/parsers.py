"""A command among others, or an action of one, as argparse has it."""

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
