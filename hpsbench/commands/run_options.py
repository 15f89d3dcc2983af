"""Which stored runs and baselines a command is about: options, alike at every command."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpsbench import runs


def add_baselines(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of baselines."""
    parser.add_argument(
        "--baselines",
        metavar="DIR",
        type=Path,
        default=Path("baselines"),
        help="folder of the baselines (default: %(default)s)",
    )


def add_runs(
    parser: argparse.ArgumentParser,
    meaning: str = "a run's file, or how its name begins (default: the newest run)",
) -> None:
    """Add the runs that a command is about, and the option for their folder."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help=meaning)
    parser.add_argument(
        "--runs",
        metavar="DIR",
        dest="runs_dir",
        type=Path,
        default=runs.FOLDER,
        help="folder of the runs (default: %(default)s)",
    )


def chosen_runs(given: argparse.Namespace) -> list[runs.Run]:
    """Return the runs that were named, or the newest.

    Raises BaselineError where there is none, or one cannot be read.
    """
    if not given.runs:
        return [runs.load(runs.latest(given.runs_dir))]
    return [runs.load(runs.find(given.runs_dir, name)) for name in given.runs]
