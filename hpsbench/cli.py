"""The `hpsbench` command: what is done between benchmark sessions, which pytest runs."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from hpsbench.commands import baseline, compare, profile, report, selftest
from hpsbench.commands import load as load_command
from hpsbench.commands.parsers import add_command
from hpsbench.errors import BenchError, ConfigError
from hpsbench.gate import EXIT_PASSED, EXIT_REGRESSED, EXIT_USAGE
from hpsbench.hps.budget import forecast
from hpsbench.hps.configuration import read_configuration
from hpsbench.report import budget

EXIT_CODES = """exit statuses:
  0   done; every check passed
  1   `compare` found a regression, or a check of `doctor` failed
  4   the command line, a configuration or a stored file cannot be used
  10  no verdict: of `compare`, `load` or `selftest`
  130 interrupted with Ctrl-C
"""

#: As shells have it for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"error: {message}\nhint: see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; argparse exits by itself for --help and misuse."""
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(given.parser, unknown)
    command: Callable[[argparse.Namespace], int] = given.command
    try:
        code = command(given)
        sys.stdout.flush()
        return code
    except BenchError as error:
        print(f"error: {error.problem}\nhint: {error.hint}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python would complain once more as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PASSED
    except MemoryError as error:
        print(
            f"error: not enough memory: {error or 'Python has no more'}\n"
            "hint: ask for less at once; `hpsbench doctor` tells what a preset needs",
            file=sys.stderr,
        )
        return EXIT_USAGE


def _refuse(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    known = re.findall(r"--[a-z][a-z-]*", parser.format_help())
    close = [m for word in unknown for m in difflib.get_close_matches(word.split("=")[0], known, 1)]
    meant = f"; did you mean {close[0]}?" if close else ""
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="hpsbench",
        description="Baselines, reports, comparisons and checks around the benchmarks that pytest "
        "runs.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {metadata.version('hpsbench')}"
    )
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", title="commands, each with its own --help"
    )
    baseline.add_arguments(add_command(commands, "baseline", "store, show and compare baselines"))

    report.add_arguments(add_command(commands, "report", "rebuild the report of a stored run"))

    compare.add_arguments(
        add_command(commands, "compare", "measure two servers side by side, and judge one")
    )

    load_command.add_arguments(
        add_command(
            commands,
            "load",
            "measure latency at given rates (open loop), or up to saturation",
        )
    )

    selftest.add_arguments(
        add_command(
            commands, "selftest", "measure how small a change `compare` finds on this machine"
        )
    )

    profile.add_arguments(
        add_command(commands, "profile", "measure the parameter server's lookups and tiers")
    )

    doctor = add_command(
        commands, "doctor", "check this machine, or a parameter server's configuration"
    )
    doctor.add_argument(
        "--preset",
        metavar="NAME",
        help="check for this preset (default: criteo with a GPU, else laptop)",
    )
    doctor.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.FIELD=VALUE",
        action="append",
        default=[],
        help="change one field of the preset; repeatable",
    )
    doctor.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="instead: check the parameter server's JSON file, and forecast the memory it takes",
    )
    doctor.set_defaults(command=_doctor)
    return parser


def _doctor(given: argparse.Namespace) -> int:
    # Checking imports TensorFlow, which the other commands do without and which chatters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # As in `onnx_engine`.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from hpsbench.commands.check import render
    from hpsbench.commands.doctor import run_checks
    from hpsbench.commands.memory_checks import memory_checks
    from hpsbench.options import default_preset
    from hpsbench.presets import load_suite

    if given.config is not None:
        if given.preset is not None or given.overrides:
            raise ConfigError(
                "--preset and --set are of a run, and --config is checked without one",
                hint="leave out either",
            )
        planned = forecast(read_configuration(given.config))
        print("\n".join([*budget.lines(planned), ""]))
        checks = memory_checks(planned)
        print(render(checks))
        return EXIT_PASSED if all(check.ok for check in checks) else EXIT_REGRESSED

    checks = run_checks(load_suite(given.preset or default_preset(), given.overrides))
    print(render(checks))
    return EXIT_PASSED if all(check.ok for check in checks) else EXIT_REGRESSED


if __name__ == "__main__":
    sys.exit(main())
