"""`hpsbench compare`: two servers side by side, and which of their models became slower."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from hpsbench.commands.compared_sides import compared_sides
from hpsbench.commands.comparison import Comparison, compare
from hpsbench.commands.request_options import add_request_options
from hpsbench.config import ServerConfig, environment
from hpsbench.duets import comparisons, selftests
from hpsbench.duets.answers import TOLERANCE
from hpsbench.duets.comparisons import StoredComparison
from hpsbench.duets.decision import BASELINE, CANDIDATE, DuetPolicy
from hpsbench.duets.pairs import fresh_pair
from hpsbench.duets.requests import option_requests, same_requests
from hpsbench.errors import ConfigError
from hpsbench.load.inputs import require_input_data
from hpsbench.machine import this_machine
from hpsbench.presets import load_suite
from hpsbench.report import files, junit, markdown, resolution
from hpsbench.telemetry import machine_watch

_DEFAULTS = DuetPolicy()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    sides = parser.add_argument_group("sides")
    sides.add_argument(
        "--baseline",
        required=True,
        metavar="X",
        help="the folder of a Triton model repository, http://HOST:PORT of a running Triton, or a "
        "git revision of this repository",
    )
    sides.add_argument(
        "--candidate", required=True, metavar="Y", help="the one that is judged: any of the same"
    )
    sides.add_argument(
        "--model",
        metavar="NAMES",
        help="the models to ask on both sides, separated by commas; of a revision, the variants "
        "(default, of two revisions: all that both measure of the preset)",
    )
    sides.add_argument(
        "--triton",
        choices=("bundled", "system"),
        help="what serves the folders (default: bundled)",
    )
    sides.add_argument(
        "--preset",
        metavar="NAME",
        help="what a revision builds (default: criteo with a GPU, else laptop)",
    )
    sides.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.FIELD=VALUE",
        action="append",
        default=[],
        help="change a deadline, such as servers.startup_timeout_s=600, or a field of a "
        "revision's preset; repeatable",
    )
    add_request_options(
        parser,
        batch_size={
            "metavar": "N,N",
            "help": "samples of a request, each number a benchmark of every model (default: 1; "
            "without --model the preset's)",
        },
    )
    judging = parser.add_argument_group("measuring and judging")
    for name, default, meaning in (
        ("launches", _DEFAULTS.launches, "fresh starts of both servers"),
        ("pairs", _DEFAULTS.pairs, "pairs of requests in each launch"),
        ("warm-up", _DEFAULTS.warm_up, "pairs of requests before them, which do not count"),
    ):
        judging.add_argument(
            f"--{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"{meaning} (default: {default})",
        )
    judging.add_argument(
        "--answer-tolerance",
        type=float,
        default=TOLERANCE,
        metavar="X",
        help="how far the candidate's answers may be from the baseline's, relative where they are "
        f"above 1; inf takes any (default: {TOLERANCE:g})",
    )
    writing = parser.add_argument_group("writing")
    writing.add_argument(
        "--junit", type=Path, metavar="FILE", help="write the verdicts as JUnit XML"
    )
    writing.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write them as GitHub's Markdown"
    )
    parser.set_defaults(command=_command)


def _command(given: argparse.Namespace) -> int:
    policy = policy_of(given)
    models, batch_sizes = _models(given.model), _batch_sizes(given.batch_size)
    if not given.answer_tolerance >= 0:
        raise ConfigError(
            f"--answer-tolerance {given.answer_tolerance} allows for nothing", hint="give 0 or more"
        )
    for path in (given.junit, given.markdown):
        files.require_place(path)
    require_input_data(given.input_data)
    options = option_requests(given.shape, models, data=given.data, input_data=given.input_data)
    config = _server_config(given.overrides, given.triton)
    with ExitStack() as stack:
        sides = compared_sides(
            given,
            models=models,
            batch_sizes=batch_sizes,
            options=options,
            config=config,
            stack=stack,
            say=_say,
        )
        ask = same_requests(sides.requests, sides.models)
        # Before the servers start, to tell whose GPU it is.
        watch = stack.enter_context(machine_watch(own_servers=sides.fresh))
        code = compare(
            Comparison(
                benchmarks=sides.benchmarks,
                baseline=sides.described[BASELINE],
                candidate=sides.described[CANDIDATE],
                policy=policy,
                fresh=sides.fresh,
                answer_tolerance=given.answer_tolerance,
            ),
            lambda number: fresh_pair(sides.contenders, ask, number, protocol=given.protocol),
            _say,
            store=lambda compared: _store(compared, given),
            watch=watch,
        )
    for file in (selftests.FILE, selftests.NOISY_FILE):
        known = selftests.stored(this_machine().cls, file, policy)
        if known is not None:
            _say(resolution.quotation(known))
    return code


def _store(compared: StoredComparison, given: argparse.Namespace) -> None:
    _say(f"stored {comparisons.save(comparisons.FOLDER, compared)}; `hpsbench report` shows it")
    for path, build in (
        (given.junit, junit.comparison_xml),
        (given.markdown, markdown.comparison_summary),
    ):
        if path is not None:
            files.write(path, build(compared))
            _say(f"wrote {path}")
    summary = environment().step_summary
    if summary is not None:
        files.append(summary, markdown.comparison_summary(compared))


def _say(line: str) -> None:
    print(line, flush=True)


def policy_of(given: argparse.Namespace) -> DuetPolicy:
    """Return the policy of the options; raises ConfigError for numbers that measure nothing."""
    if given.warm_up < 0:
        raise ConfigError(f"--warm-up {given.warm_up} is negative", hint="give 0 or more")
    return DuetPolicy(
        launches=_at_least_one("--launches", given.launches),
        pairs=_at_least_one("--pairs", given.pairs),
        warm_up=given.warm_up,
    )


def _at_least_one(option: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{option} {value} measures nothing", hint="give 1 or more")
    return value


def _models(option: str | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(n.strip() for n in (option or "").split(",") if n.strip()))
    if option is not None and not names:
        raise ConfigError(f"--model {option!r} names no model", hint="for example hps_tf")
    return names


def _batch_sizes(option: str | None) -> tuple[int, ...]:
    sizes = []
    for word in [] if option is None else option.split(","):
        try:
            sizes.append(int(word))
        except ValueError:
            raise ConfigError(
                f"--batch-size {option!r} is no number of samples, nor several",
                hint="for example 64, or 7,64",
            ) from None
        _at_least_one("--batch-size", sizes[-1])
    return tuple(dict.fromkeys(sizes))


def _server_config(overrides: Sequence[str], triton: str | None) -> ServerConfig:
    chosen = [o for o in overrides if o.strip().startswith("servers.")]
    if triton:
        chosen.append(f"servers.triton={triton}")
    # This preset has no section `servers` of its own.
    config = load_suite("smoke", chosen).servers
    if "://" in config.triton:
        raise ConfigError(
            f"servers.triton is {config.triton}, which would serve both sides",
            hint="give the URL as --baseline or --candidate",
        )
    return config
