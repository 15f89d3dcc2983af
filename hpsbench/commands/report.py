"""`hpsbench report`: a stored run's report, built again from the baselines of today."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpsbench import baselines, published
from hpsbench.commands.run_options import add_baselines, add_runs, chosen_runs
from hpsbench.errors import BaselineError
from hpsbench.gate import EXIT_PASSED
from hpsbench.machine import this_machine
from hpsbench.report import files, html, junit, markdown
from hpsbench.report.contents import earlier_runs, gather, gather_apart
from hpsbench.report.results import results_files


def add_arguments(report: argparse.ArgumentParser) -> None:
    """Add the options of `hpsbench report`."""
    add_baselines(report)
    add_runs(
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


def _report(given: argparse.Namespace) -> int:
    if given.results is not None:
        every = baselines.load_every(given.baselines)
        if not every:
            raise BaselineError(
                f"{given.baselines} has no baselines, so there are no results to write",
                hint="name their folder: --baselines DIR",
            )
        for name, text in results_files(every, published.load(given.baselines)).items():
            files.write(given.results / name, text)
            print(f"wrote {given.results / name}", file=sys.stderr)
        return EXIT_PASSED
    named = given.runs or given.junit or given.markdown
    if not named and not any(given.runs_dir.glob("*.json")) and _report_without_run(given):
        return EXIT_PASSED
    chosen = sorted(chosen_runs(given), key=lambda run: run.run_id)
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
