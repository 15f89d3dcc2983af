"""The options of what a command asks a model: alike for comparisons and open loops."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpsbench.commands.parsers import positive
from hpsbench.config import PROTOCOLS
from hpsbench.load.inputs import DATA


def add_request_options(
    parser: argparse.ArgumentParser, *, batch_size: Mapping[str, Any] | None = None
) -> None:
    """Add how large requests are, what is in them, and how they travel.

    `batch_size` has the settings of that option where it is not one number.
    """
    group = parser.add_argument_group("requests")
    one_size = {
        "type": positive,
        "default": 1,
        "metavar": "N",
        "help": "samples of a request (default: %(default)s)",
    }
    group.add_argument("--batch-size", **(batch_size or one_size))
    group.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME:N,N",
        help="an input's shape where the model leaves it open; repeatable",
    )
    group.add_argument(
        "--data",
        choices=DATA,
        default=DATA[0],
        help="made-up values: random, or all zero (default: %(default)s)",
    )
    group.add_argument(
        "--input-data",
        type=_file,
        metavar="FILE",
        help="requests out of perf_analyzer's JSON, in place of made-up values",
    )
    group.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default=PROTOCOLS[0],
        help="how requests travel (default: %(default)s)",
    )


def _file(text: str) -> Path:
    # Before servers start, not after.
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file")
    return path
