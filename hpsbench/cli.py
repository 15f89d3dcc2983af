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
from typing import NoReturn, TypeVar

from hpsbench import baselines, published, runs
from hpsbench.commands import compare, profile, selftest
from hpsbench.commands import load as load_command
from hpsbench.errors import BaselineError, BenchError, ConfigError
from hpsbench.gate import EXIT_PASSED, EXIT_REGRESSED, EXIT_USAGE
from hpsbench.hps.budget import forecast
from hpsbench.hps.configuration import read_configuration
from hpsbench.machine import this_machine
from hpsbench.report import budget, files, html, junit, markdown, stored
from hpsbench.report.contents import earlier_runs, gather, gather_apart
from hpsbench.report.results import results_files
from hpsbench.verdict import Outcome

EXIT_CODES = """exit statuses:
  0   done; every check passed
  1   `compare` found a regression, or a check of `doctor` failed
  4   the command line, a configuration or a stored file cannot be used
  10  no verdict: of `compare`, `load` or `selftest`
  130 interrupted with Ctrl-C
"""

#: As shells have it for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


_AnyParser = TypeVar("_AnyParser", bound=argparse.ArgumentParser)


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
    baseline = _add(commands, "baseline", "store, show and compare baselines")
    actions = baseline.add_subparsers(
        required=True, metavar="ACTION", title="actions, each with its own --help"
    )

    update = _add(actions, "update", "store what runs measured as the baselines")
    update.add_argument(
        "--append",
        action="store_true",
        help="add the runs to what is stored, for a firmer baseline (default: replace it)",
    )
    update.add_argument(
        "--only",
        action="append",
        metavar="ID",
        help="store this benchmark alone; repeatable (default: all)",
    )
    _add_baselines(update)
    _add_runs(update)
    update.set_defaults(command=_update)

    show = _add(actions, "show", "list the stored baselines, or every launch of some")
    show.add_argument(
        "ids",
        nargs="*",
        metavar="ID",
        help="show every launch of this benchmark (default: list all)",
    )
    show.add_argument("--machine", metavar="CLASS", help="class of machine (default: this one's)")
    _add_baselines(show)
    show.set_defaults(command=_show)

    diff = _add(actions, "diff", "show what `update` would change")
    _add_baselines(diff)
    _add_runs(diff)
    diff.set_defaults(command=_diff)

    report = _add(commands, "report", "rebuild the report of a stored run")
    _add_baselines(report)
    _add_runs(
        report,
        "a run's file, or how its name begins; of several the newest is reported, and the others "
        "are its history (default: the newest run, and those before it)",
    )
    report.add_argument(
        "--html",
        metavar="FILE",
        type=Path,
        help=f"write the page (default, without any of these: {files.HTML_NAME} beside the runs)",
    )
    report.add_argument("--junit", metavar="FILE", type=Path, help="write JUnit XML")
    report.add_argument("--markdown", metavar="FILE", type=Path, help="write GitHub's Markdown")
    report.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        help="of no run: write a page with charts for each machine that has baselines",
    )
    report.set_defaults(command=_report)

    compare.add_arguments(
        _add(commands, "compare", "measure two servers side by side, and judge one")
    )

    load_command.add_arguments(
        _add(
            commands,
            "load",
            "measure latency at given rates (open loop), or up to saturation",
        )
    )

    selftest.add_arguments(
        _add(commands, "selftest", "measure how small a change `compare` finds on this machine")
    )

    profile.add_arguments(
        _add(commands, "profile", "measure the parameter server's lookups and tiers")
    )

    doctor = _add(commands, "doctor", "check this machine, or a parameter server's configuration")
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


def _add(
    commands: argparse._SubParsersAction[_AnyParser], name: str, purpose: str
) -> argparse.ArgumentParser:
    sentence = f"{purpose[0].upper()}{purpose[1:]}."
    parser = commands.add_parser(name, help=purpose, description=sentence)
    parser.set_defaults(parser=parser)
    return parser


def _add_baselines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--baselines",
        metavar="DIR",
        type=Path,
        default=Path("baselines"),
        help="folder of the baselines (default: %(default)s)",
    )


def _add_runs(
    parser: argparse.ArgumentParser,
    meaning: str = "a run's file, or how its name begins (default: the newest run)",
) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help=meaning)
    parser.add_argument(
        "--runs",
        metavar="DIR",
        dest="runs_dir",
        type=Path,
        default=runs.FOLDER,
        help="folder of the runs (default: %(default)s)",
    )


def _update(given: argparse.Namespace) -> int:
    chosen = _chosen_runs(given)
    for run in chosen:
        print(f"run {run.run_id}: preset {run.preset}, recorded {run.recorded_at}")
    new = runs.combined(chosen)
    if given.only is not None:
        new = _only(given.only, new)
    stored_ids = {b.benchmark for b in new}
    for result in (r for run in chosen for r in run.results):
        regressed = result.verdict.outcome is Outcome.REGRESSED
        if given.append and regressed and result.measurement.benchmark in stored_ids:
            raise BaselineError(
                f"{result.measurement.benchmark} was judged REGRESSED, so this run is no repeat",
                hint="replace its baseline if that is intended: leave out --append",
            )
        if result.measurement.invalid is not None:
            print(f"left out {result.measurement.benchmark}: {result.measurement.invalid}")
    if not new:
        raise BaselineError("these runs hold no valid measurement", hint="measure again")
    for path in baselines.update(given.baselines, new, append=given.append):
        print(f"stored {path}")
    print("review the change with `git diff`, and commit it")
    return EXIT_PASSED


def _show(given: argparse.Namespace) -> int:
    machine = given.machine or this_machine().cls
    found = baselines.load(given.baselines, machine)
    if given.ids:
        known = list(found.here.values())
        print("\n\n".join("\n".join(stored.details(b)) for b in _only(given.ids, known)))
        return EXIT_PASSED
    print(f"{machine}: {len(found.here)} baselines in {given.baselines}")
    if found.here:
        print("\n".join(stored.listing(found.here.values())))
    others = sorted({cls for classes in found.elsewhere.values() for cls in classes})
    for other in others:
        print(f"see also: hpsbench baseline show --machine {other}")
    return EXIT_PASSED


def _diff(given: argparse.Namespace) -> int:
    chosen = _chosen_runs(given)
    new = runs.combined(chosen)
    verdicts = {verdict.benchmark: verdict for run in chosen for verdict in run.verdicts}
    for machine in dict.fromkeys(run.machine.cls for run in chosen):
        found = baselines.load(given.baselines, machine)
        alike = [
            (run.preset, workload)
            for run in chosen
            if run.machine.cls == machine
            for workload in (run.workload, *(run.workload_of(r) for r in run.results))
        ]
        ids = {b.benchmark for b in new}
        here = {
            name: baseline
            for name, baseline in found.here.items()
            if name in ids or (baseline.preset, baseline.workload) in alike
        }
        print(f"{machine}, run {', '.join(r.run_id for r in chosen if r.machine.cls == machine)}")
        of_machine = [b for b in new if b.machine == machine]
        print("\n".join(stored.difference(here, of_machine, verdicts)))
    return EXIT_PASSED


def _report(given: argparse.Namespace) -> int:
    if given.results is not None:
        every = baselines.load_every(given.baselines)
        for name, text in results_files(every, published.load(given.baselines)).items():
            files.write(given.results / name, text)
            print(f"wrote {given.results / name}", file=sys.stderr)
        return EXIT_PASSED
    named = given.runs or given.junit or given.markdown
    if not named and not any(given.runs_dir.glob("*.json")) and _report_without_run(given):
        return EXIT_PASSED
    chosen = sorted(_chosen_runs(given), key=lambda run: run.run_id)
    run = chosen.pop()
    earlier = chosen if given.runs[1:] else earlier_runs(given.runs_dir, run)
    contents = gather(
        run,
        baselines_folder=given.baselines,
        earlier=earlier,
        beside=given.runs_dir.parent,
    )
    asked = (
        (given.html, html.page),
        (given.junit, junit.suite_xml),
        (given.markdown, markdown.summary),
    )
    wanted = [(path, build) for path, build in asked if path is not None]
    for path, build in wanted or [(given.runs_dir.parent / files.HTML_NAME, html.page)]:
        files.write(path, build(contents))
        print(f"wrote {path}", file=sys.stderr)
    return EXIT_PASSED


def _report_without_run(given: argparse.Namespace) -> bool:
    """Write what `load`, `compare` and `selftest` stored; returns whether there was any."""
    machine = this_machine().cls
    apart = gather_apart(machine, given.runs_dir.parent)
    if apart.empty:
        return False
    path = given.html or given.runs_dir.parent / files.HTML_NAME
    files.write(path, html.page_without_run(machine, apart))
    print(f"wrote {path}: no session is stored, so of what commands measured", file=sys.stderr)
    return True


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


def _chosen_runs(given: argparse.Namespace) -> list[runs.Run]:
    if not given.runs:
        return [runs.load(runs.latest(given.runs_dir))]
    return [runs.load(runs.find(given.runs_dir, name)) for name in given.runs]


def _only(ids: Sequence[str], known: Sequence[baselines.Baseline]) -> list[baselines.Baseline]:
    names = [b.benchmark for b in known]
    for wanted in ids:
        if wanted not in names:
            close = difflib.get_close_matches(wanted, names, n=1)
            raise BaselineError(
                f"no benchmark {wanted!r} here",
                hint=f"did you mean {close[0]}?" if close else f"known: {', '.join(names) or '-'}",
            )
    return [b for b in known if b.benchmark in ids]


if __name__ == "__main__":
    sys.exit(main())
