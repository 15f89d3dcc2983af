"""`hpsbench baseline`: what runs measured as the baselines, stored, shown and compared."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from hpsbench import baselines, runs
from hpsbench.baseline_check import check
from hpsbench.commands.parsers import add_command
from hpsbench.commands.run_options import add_baselines, add_runs, chosen_runs
from hpsbench.config import GateConfig
from hpsbench.errors import BaselineError, BenchError
from hpsbench.gate import EXIT_PASSED
from hpsbench.machine import this_machine
from hpsbench.presets import load_suite, preset_names
from hpsbench.report import files, html, stored
from hpsbench.report.contents import earlier_runs, gather
from hpsbench.verdict import Outcome


def add_arguments(baseline: argparse.ArgumentParser) -> None:
    """Add the command's actions and their options."""
    actions = baseline.add_subparsers(
        required=True, metavar="ACTION", title="actions, each with its own --help"
    )

    update = add_command(actions, "update", "store what runs measured as the baselines")
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
    add_baselines(update)
    add_runs(update)
    update.set_defaults(command=_update)

    show = add_command(actions, "show", "list the stored baselines, or every launch of some")
    show.add_argument(
        "ids",
        nargs="*",
        metavar="ID",
        help="show every launch of this benchmark (default: list all)",
    )
    show.add_argument("--machine", metavar="CLASS", help="class of machine (default: this one's)")
    add_baselines(show)
    show.set_defaults(command=_show)

    checked = add_command(actions, "check", "judge each stored run by the others, and made slower")
    checked.add_argument(
        "ids", nargs="*", metavar="ID", help="check this benchmark (default: check all)"
    )
    checked.add_argument(
        "--machine", metavar="CLASS", help="class of machine (default: this one's)"
    )
    add_baselines(checked)
    checked.set_defaults(command=_check)

    diff = add_command(actions, "diff", "show what `update` would change")
    add_baselines(diff)
    add_runs(diff)
    diff.set_defaults(command=_diff)


def _update(given: argparse.Namespace) -> int:
    chosen = chosen_runs(given)
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
    _rebuild_report(given, chosen)
    print("review the change with `git diff`, and commit it")
    return EXIT_PASSED


def _rebuild_report(given: argparse.Namespace, chosen: Sequence[runs.Run]) -> None:
    """Bring the newest run's page up to date, where it is there and was accepted."""
    page = given.runs_dir.parent / files.HTML_NAME
    if not page.is_file():
        return
    newest = runs.latest(given.runs_dir).stem
    for run in (run for run in chosen if run.run_id == newest):
        try:
            contents = gather(
                run,
                baselines_folder=given.baselines,
                earlier=earlier_runs(given.runs_dir, run),
                beside=given.runs_dir.parent,
            )
            files.write(page, html.page(contents))
        except BenchError as error:
            # The baselines are stored all the same.
            print(f"{page} still tells of before: {error.problem}")
        else:
            print(f"wrote {page}, where these are shown as accepted")


def _show(given: argparse.Namespace) -> int:
    found = _stored(given)
    if given.ids:
        known = list(found.here.values())
        print("\n\n".join("\n".join(stored.details(b)) for b in _only(given.ids, known)))
        return EXIT_PASSED
    print(f"{found.machine}: {len(found.here)} baselines in {given.baselines}")
    if found.here:
        print("\n".join(stored.listing(found.here.values())))
    others = sorted({cls for classes in found.elsewhere.values() for cls in classes})
    for other in others:
        print(f"see also: hpsbench baseline show --machine {other}")
    return EXIT_PASSED


def _check(given: argparse.Namespace) -> int:
    found = _stored(given)
    chosen = list(found.here.values())
    if given.ids:
        chosen = _only(given.ids, chosen)
    if not chosen:
        raise BaselineError(
            f"{given.baselines} has no baseline of {found.machine}",
            hint="measure, and store it: `hpsbench baseline update`",
        )
    print(f"{found.machine}: each stored run, judged by the others of its benchmark")
    print("\n".join(stored.checks([check(b, _policy(b.preset)) for b in chosen])))
    return EXIT_PASSED


def _policy(preset: str) -> GateConfig:
    """Return what a preset judges by; of a preset that is not here, the defaults."""
    return load_suite(preset).gate if preset in preset_names() else GateConfig()


def _stored(given: argparse.Namespace) -> baselines.Baselines:
    machine = given.machine or this_machine().cls
    if not given.baselines.is_dir():
        raise BaselineError(
            f"{given.baselines} is no folder", hint="name that of the baselines: --baselines DIR"
        )
    if given.machine is not None and not (given.baselines / machine).is_dir():
        machines = sorted(p.name for p in given.baselines.iterdir() if p.is_dir())
        raise BaselineError(
            f"{given.baselines} has nothing of machine {machine!r}",
            hint=f"its machines: {', '.join(machines) or 'none'}",
        )
    return baselines.load(given.baselines, machine)


def _diff(given: argparse.Namespace) -> int:
    chosen = chosen_runs(given)
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
