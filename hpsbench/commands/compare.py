"""`hpsbench compare`: two servers of one model side by side, and whether one became slower."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hpsbench import revisions, runs
from hpsbench.commands.request_options import add_request_options
from hpsbench.config import ServerConfig, environment
from hpsbench.duets import comparisons, selftests
from hpsbench.duets.answers import TOLERANCE, AnswerDifference, Answers, answer_difference
from hpsbench.duets.comparisons import StoredComparison, compared_launches
from hpsbench.duets.decision import BASELINE, CANDIDATE, DuetPolicy, DuetSession, judge_duet, pooled
from hpsbench.duets.pairs import NAMES, Contender, contender, fresh_pair, same_requests
from hpsbench.duets.session import LaunchDone, run_duet
from hpsbench.errors import ConfigError, RequestError
from hpsbench.gate import exit_code
from hpsbench.load.inputs import Requests, parse_shapes
from hpsbench.machine import this_machine
from hpsbench.presets import load_suite
from hpsbench.report import duet as report
from hpsbench.report import files, markdown, resolution
from hpsbench.session import Launch
from hpsbench.telemetry import Watch, machine_watch, unwatched
from hpsbench.verdict import Outcome, Verdict
from hpsbench.workspace import workspace

LOGS = runs.FOLDER.parent
#: Where git revisions of this package come from.
CHECKOUT = Path(__file__).parents[1]
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
        required=True,
        metavar="NAME",
        help="the model to ask on both sides; of a revision, the variant",
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
    add_request_options(parser)
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
    parser.set_defaults(command=_command)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, in words, and how."""

    model: str
    baseline: str
    candidate: str
    policy: DuetPolicy
    batch_size: int = 1
    fresh: bool = True
    answer_tolerance: float = TOLERANCE


class AnsweringPair(Launch, Protocol):
    """A fresh pair of servers that also tells what it answers."""

    def answers(self, batch_size: int) -> Mapping[str, Answers]:
        """Return what BASELINE and CANDIDATE answer to the same requests."""


def compare(
    comparison: Comparison,
    pair: Callable[[int], AbstractContextManager[AnsweringPair]],
    say: Callable[[str], None],
    *,
    store: Callable[[StoredComparison], None] = lambda _: None,
    watch: Watch = unwatched,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Measure a duet on `pair`, say what is found line by line, and return the exit code.

    The first launch's servers are asked whether they answer the same before anything is measured;
    where they do not, nothing is, and the verdict is INVALID. `store` is given the result, and
    `watch` tells what the machine did meanwhile. Raises what `run_duet` raises.
    """
    policy = comparison.policy
    found: list[AnswerDifference] = []

    @contextmanager
    def checked(number: int) -> Iterator[Launch]:
        with pair(number) as launched:
            if not found:
                try:
                    answers = launched.answers(comparison.batch_size)
                except RequestError as error:
                    # The requests that are measured meet the same, and tell whose it is.
                    say(f"answers cannot be compared: {error.problem}")
                else:
                    found.append(
                        answer_difference(
                            answers[BASELINE],
                            answers[CANDIDATE],
                            tolerance=comparison.answer_tolerance,
                        )
                    )
                    if found[0].problem is not None:
                        raise _OtherAnswers(found[0])
                    say(found[0].text)
                    say(report.HEADER)
            yield launched

    lines = report.introduction(
        policy,
        model=comparison.model,
        baseline=comparison.baseline,
        candidate=comparison.candidate,
    )
    if not comparison.fresh:
        lines.append(
            "a server that runs already is the same in every launch: what its own start decided "
            "counts as a change"
        )
    for line in [*lines, ""]:
        say(line)

    def on_launch(done: LaunchDone) -> None:
        say(report.launch_line(done.session, done.launch, DuetSession(launches=(done.measured,))))

    def on_confirm(first: DuetSession) -> None:
        say(report.launch_line(1, "all", first))
        say(report.CONFIRMING)

    sessions: list[DuetSession] = []
    try:
        sessions = run_duet(
            checked,
            policy,
            batch_size=comparison.batch_size,
            on_launch=on_launch,
            on_confirm=on_confirm,
            watch=watch,
            clock_ns=clock_ns,
            sleep=sleep,
        )
        verdict = judge_duet(sessions, policy, name=comparison.model)
    except _OtherAnswers as other:
        verdict = other_answers(other.difference, name=comparison.model)
    if sessions and pooled(sessions).invalid is None:
        say(report.launch_line(len(sessions), "all", sessions[-1]))
        if len(sessions) > 1:
            say(report.launch_line("both", "all", pooled(sessions)))
    for line in ["", *report.verdict_lines(verdict)]:
        say(line)
    comparison_id, recorded_at = comparisons.new_id()
    store(
        StoredComparison(
            comparison_id=comparison_id,
            recorded_at=recorded_at,
            machine=this_machine().cls,
            model=comparison.model,
            baseline=comparison.baseline,
            candidate=comparison.candidate,
            policy=policy,
            launches=compared_launches(sessions),
            verdict=verdict,
            answers=found[0].text if found else None,
        )
    )
    return exit_code([verdict], strict=True, other_failures=False)


class _OtherAnswers(Exception):
    """The candidate answers otherwise than the baseline: there is nothing to measure."""

    def __init__(self, difference: AnswerDifference) -> None:
        super().__init__(difference.text)
        self.difference = difference


def other_answers(difference: AnswerDifference, *, name: str) -> Verdict:
    """Return the verdict on a candidate that does not answer as the baseline does."""
    return Verdict(
        outcome=Outcome.INVALID,
        benchmark=name,
        text=f"{name}: {difference.text}; a candidate that answers otherwise is not measured",
        hint="mend the candidate, or allow for more with --answer-tolerance",
    )


def _command(given: argparse.Namespace) -> int:
    policy = policy_of(given)
    batch_size = _at_least_one("--batch-size", given.batch_size)
    if not given.answer_tolerance >= 0:
        raise ConfigError(
            f"--answer-tolerance {given.answer_tolerance} allows for nothing", hint="give 0 or more"
        )
    shapes = parse_shapes(given.shape)
    config = _server_config(given.overrides, given.triton)
    sources = dict(zip(NAMES, (given.baseline, given.candidate), strict=True))
    commits = {name: commit_of(source) for name, source in sources.items()}
    if not any(commits.values()):
        _require_servers_only(given)
    with ExitStack() as stack:
        if any(commits.values()):
            folder = stack.enter_context(workspace(environment().cache_dir / "work"))
        contenders: dict[str, Contender] = {}
        own_requests: Path | None = None
        for name, source in sources.items():
            commit, log = commits[name], LOGS / f"compare-{name}.log"
            if commit is None:
                contenders[name] = contender(source, model=given.model, config=config, log=log)
                continue
            revision, built = _build(commit, given, folder / name)
            contenders[name] = Contender(
                model=given.model,
                repository=built.repository,
                config=config,
                log=log,
                models=built.models,
                python=revision.python,
            )
            own_requests = own_requests or built.requests
        for side in contenders.values():
            _empty(side.log)
        requests = Requests(shapes=shapes, data=given.data, input_data=given.input_data)
        if own_requests is not None and not (shapes or given.input_data):
            # Its entries are whole requests of this batch size.
            requests, batch_size = Requests(input_data=own_requests), 1
        ask = same_requests(requests, given.model)
        fresh = not any(side.is_running for side in contenders.values())
        # Before the servers start, to tell whose GPU it is.
        watch = stack.enter_context(machine_watch(own_servers=fresh))
        code = compare(
            Comparison(
                model=given.model,
                baseline=_described(given.baseline, commits[BASELINE]),
                candidate=_described(given.candidate, commits[CANDIDATE]),
                policy=policy,
                batch_size=batch_size,
                fresh=fresh,
                answer_tolerance=given.answer_tolerance,
            ),
            lambda number: fresh_pair(contenders, ask, number, protocol=given.protocol),
            _say,
            store=_store,
            watch=watch,
        )
    for file in (selftests.FILE, selftests.NOISY_FILE):
        known = selftests.stored(this_machine().cls, file, policy)
        if known is not None:
            _say(resolution.quotation(known))
    return code


def commit_of(source: str) -> str | None:
    """Return the commit that a side names, None where it is a folder, a URL or nothing known."""
    if "://" in source or Path(source).is_dir():
        return None
    return revisions.find_commit(source, CHECKOUT)


def _build(
    commit: str, given: argparse.Namespace, folder: Path
) -> tuple[revisions.Revision, revisions.BuiltModels]:
    from hpsbench.options import default_preset

    preset = given.preset or default_preset()
    _say(f"building {given.model} of revision {commit[:12]}, preset {preset}")
    revision = revisions.prepare(commit, CHECKOUT, environment().cache_dir / "revisions")
    folder.mkdir()
    return revision, revisions.build_models(
        revision,
        preset=preset,
        variant=given.model,
        batch_size=given.batch_size,
        overrides=given.overrides,
        folder=folder / "models",
    )


def _described(source: str, commit: str | None) -> str:
    return source if commit is None else f"{source} (revision {commit[:12]})"


def _store(compared: StoredComparison) -> None:
    _say(f"stored {comparisons.save(comparisons.FOLDER, compared)}; `hpsbench report` shows it")
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


def _require_servers_only(given: argparse.Namespace) -> None:
    others = [o for o in given.overrides if not o.strip().startswith("servers.")]
    if others or given.preset:
        option = f"--set {others[0]!r}" if others else f"--preset {given.preset}"
        raise ConfigError(
            f"{option}: only a git revision has a preset, and neither side is one",
            hint="for example --set servers.startup_timeout_s=600",
        )


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


def _empty(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
