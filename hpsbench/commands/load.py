"""`hpsbench load`: any Triton model under open-loop load, at given rates or up to saturation."""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack
from pathlib import Path

from hpsbench import load_results, runs
from hpsbench.commands.parsers import whole
from hpsbench.commands.request_options import add_request_options
from hpsbench.config import ARRIVALS, ServerConfig
from hpsbench.duets import comparisons
from hpsbench.duets.pairs import contender
from hpsbench.errors import ConfigError
from hpsbench.gate import EXIT_NO_VERDICT, EXIT_PASSED
from hpsbench.load.arrivals import Arrivals, read_intervals
from hpsbench.load.client import connect
from hpsbench.load.inputs import Requests, parse_shapes, require_input_data
from hpsbench.load_curve import LoadCurve
from hpsbench.load_results import LoadResult
from hpsbench.load_session import LoadPlan, measure_load
from hpsbench.machine import this_machine
from hpsbench.report import files
from hpsbench.report import load as report
from hpsbench.servers.metadata import read_metadata
from hpsbench.servers.triton import running_triton

LOG = runs.FOLDER.parent / "load.log"
_DEFAULTS = LoadPlan()
#: Of one rate: all are planned ahead, and every record of them is kept.
_MAX_REQUESTS = 10_000_000
_MAX_DURATION_S = 7 * 24 * 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="http://HOST:PORT of a running Triton, or the folder of a Triton model repository",
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="the model to ask")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"where all figures go (default: a file in {load_results.FOLDER}, for the report)",
    )
    load = parser.add_argument_group("load")
    load.add_argument(
        "--rate",
        type=float,
        action="append",
        default=[],
        metavar="HZ",
        help="requests per second; repeatable (default: a sweep up to saturation)",
    )
    load.add_argument(
        "--arrivals",
        choices=ARRIVALS,
        default="poisson",
        help="how requests arrive (default: %(default)s)",
    )
    load.add_argument(
        "--request-intervals",
        type=Path,
        metavar="FILE",
        help="of recorded arrivals: microseconds between requests, one a line",
    )
    load.add_argument(
        "--duration",
        type=float,
        default=_DEFAULTS.duration_s,
        metavar="S",
        help="seconds of each rate (default: %(default)g)",
    )
    load.add_argument(
        "--warm-up",
        type=float,
        default=_DEFAULTS.warmup_s,
        metavar="S",
        help="seconds before them, which do not count (default: %(default)g)",
    )
    load.add_argument(
        "--slo-ms",
        type=float,
        metavar="MS",
        help="tell the share of requests answered within this time, and sweep up to it "
        "(default: none)",
    )
    load.add_argument(
        "--connections",
        type=int,
        default=_DEFAULTS.connections,
        metavar="N",
        help="requests that may be unanswered at a time (default: %(default)s)",
    )
    load.add_argument(
        "--seed",
        type=whole,
        default=0,
        metavar="N",
        help="seed of the arrivals (default: %(default)s)",
    )
    add_request_options(parser)
    parser.set_defaults(command=_command)


def plan_of(given: argparse.Namespace) -> LoadPlan:
    """Return the plan of the options. Raises ConfigError for what measures nothing."""
    if given.request_intervals is not None and given.arrivals not in ("poisson", "recorded"):
        raise ConfigError(
            f"--arrivals {given.arrivals} with --request-intervals",
            hint="leave one of them out: recorded intervals are arrivals of their own",
        )
    if given.arrivals == "recorded" and given.request_intervals is None:
        raise ConfigError(
            "--arrivals recorded without a record", hint="give it: --request-intervals FILE"
        )
    if given.request_intervals is None:
        arrivals = Arrivals(kind=given.arrivals)
    else:
        intervals = read_intervals(given.request_intervals)
        arrivals = Arrivals(kind="recorded", intervals_ns=intervals)
    recorded_hz = arrivals.recorded_rate_hz
    if given.slo_ms is not None and not given.slo_ms > 0:
        raise ConfigError(f"--slo-ms {given.slo_ms} cannot be met", hint="give milliseconds")
    for option, values in (
        ("--rate", given.rate),
        ("--duration", [given.duration]),
        ("--warm-up", [given.warm_up]),
        ("--slo-ms", [] if given.slo_ms is None else [given.slo_ms]),
    ):
        for value in values:
            if not math.isfinite(value):
                raise ConfigError(f"{option} {value} has no end", hint="give a finite number")
    whole_s = given.duration + given.warm_up
    if whole_s > _MAX_DURATION_S:
        raise ConfigError(
            f"--duration and --warm-up are {whole_s:g} s, more than a week",
            hint="lower --duration or --warm-up",
        )
    for rate_hz in given.rate:
        if rate_hz * whole_s > _MAX_REQUESTS:
            raise ConfigError(
                f"--rate {rate_hz:g} for {whole_s:g} s is more than {_MAX_REQUESTS:,} requests",
                hint="lower --rate or --duration",
            )
    try:
        return LoadPlan(
            rates_hz=tuple(given.rate) or ((recorded_hz,) if recorded_hz else ()),
            arrivals=arrivals,
            duration_s=given.duration,
            warmup_s=given.warm_up,
            slo_ns=None if given.slo_ms is None else round(given.slo_ms * 1e6),
            connections=given.connections,
            seed=given.seed,
        )
    except ValueError as error:
        raise ConfigError(
            f"this load cannot be: {error}", hint="give a positive --rate and --duration"
        ) from error


def _command(given: argparse.Namespace) -> int:
    plan = plan_of(given)
    requests = Requests(
        shapes=parse_shapes(given.shape), data=given.data, input_data=given.input_data
    )
    require_input_data(given.input_data)
    files.require_place(given.json)
    files.require_place(LOG)
    LOG.write_bytes(b"")
    side = contender(given.source, models=(given.model,), config=ServerConfig(), log=LOG)
    with ExitStack() as stack:
        server = stack.enter_context(
            running_triton(
                side.repository,
                side.models,
                side.config,
                log=side.log,
                complete_config=side.complete_config,
            )
        )
        inputs = requests.of(read_metadata(server.http, given.model), given.batch_size)
        client = stack.enter_context(
            connect(server.endpoint(given.model), inputs, protocol=given.protocol)
        )
        _say(
            f"{given.model} at {given.source}: {plan.arrivals.kind} arrivals for "
            f"{plan.duration_s:g} s after {plan.warmup_s:g} s to warm up, over {given.protocol}"
        )
        _say(report.header(plan.slo_ns))
        curve = measure_load(
            plan,
            client.another,
            server.check_alive,
            lambda point: _say(report.point_line(point, plan.slo_ns)),
        )
    for line in report.closing_lines(curve):
        _say(line)
    _store(given, curve)
    return EXIT_NO_VERDICT if curve.problems else EXIT_PASSED


def _store(given: argparse.Namespace, curve: LoadCurve) -> None:
    name, recorded_at = comparisons.new_id()
    result = LoadResult(
        recorded_at=recorded_at,
        machine=this_machine().cls,
        source=given.source,
        model=given.model,
        protocol=given.protocol,
        batch_size=given.batch_size,
        curve=curve,
    )
    file = given.json or load_results.FOLDER / f"{name}.json"
    load_results.save(file, result)
    _say(f"wrote {file}" if given.json else f"stored {file}; `hpsbench report` shows it")


def _say(line: str) -> None:
    print(line, flush=True)
