"""`hpsbench selftest`: what this host's duets can tell apart, on servers slowed by known shares."""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from hpsbench.config import ServerConfig, environment
from hpsbench.duets.decision import DuetPolicy, judge_duet
from hpsbench.duets.launches import pooled
from hpsbench.duets.pairs import NAMES
from hpsbench.duets.resolution import (
    CONFIDENCE,
    INJECTED,
    Decision,
    SelfTest,
    differences,
    mean_change,
    merged,
    with_decisions,
)
from hpsbench.duets.selftests import FILE, NOISY_FILE, load, require_place, store
from hpsbench.duets.session import LaunchDone, Pair, PairLaunch, run_duets
from hpsbench.duets.slowed import (
    BENCHMARK,
    Recalibrated,
    calibrate,
    slowed_pair,
    write_model,
)
from hpsbench.errors import BaselineError, ConfigError
from hpsbench.gate import EXIT_NO_VERDICT, EXIT_PASSED
from hpsbench.machine import this_machine
from hpsbench.ratios import Statistic
from hpsbench.report import resolution as report
from hpsbench.servers.neighbours import noisy_neighbours
from hpsbench.verdict import Outcome
from hpsbench.workspace import workspace

SESSIONS, QUICK_SESSIONS = 10, 3
#: Decisions; a calibration takes as long as one.
CALIBRATED_EVERY = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--sessions",
        type=int,
        metavar="N",
        help=f"decisions of each change (default: {SESSIONS}; with --quick {QUICK_SESSIONS})",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SESSIONS} decisions of each change"
    )
    parser.add_argument(
        "--share",
        metavar="SHARES",
        help="changes to make, separated by commas; A/A is none (default: "
        f"{','.join(map(report.share_name, INJECTED))})".replace("%", "%%"),
    )
    parser.add_argument(
        "--noisy",
        action="store_true",
        help="measure beside made-up neighbours, which are busy in bursts",
    )
    parser.add_argument(
        "--append", action="store_true", help="add to the decisions that the file holds"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"where decisions are stored (default: {FILE}; with --noisy {NOISY_FILE})",
    )
    parser.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing, but count the decisions of these files together, and store them",
    )
    parser.set_defaults(command=_command)


def selftest(
    pair: Callable[[float], Pair[PairLaunch]],
    *,
    sessions: int,
    policy: DuetPolicy,
    shares: Sequence[float] = INJECTED,
    seed: int = 0,
    on_decision: Callable[[Decision], None] = lambda _: None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Decision]:
    """Return `sessions` decisions for each of `shares`, in random order of the shares.

    `pair(share)` gives pairs of servers whose candidate is slower by this share.
    """
    order = random.Random(seed)
    decisions = []
    for number in range(sessions):
        # Every share meets whatever the machine does in these minutes.
        for position, share in enumerate(order.sample(shares, len(shares))):
            decisions.append(
                _decide(
                    pair(share),
                    share,
                    policy,
                    seed=10 * (seed + number * len(shares) + position),
                    clock_ns=clock_ns,
                    sleep=sleep,
                )
            )
            on_decision(decisions[-1])
    return decisions


def _decide(
    pair: Pair[PairLaunch],
    share: float,
    policy: DuetPolicy,
    *,
    seed: int,
    clock_ns: Callable[[], int],
    sleep: Callable[[float], None],
) -> Decision:
    asking_s: list[float] = []

    def on_launch(done: LaunchDone) -> None:
        asking_s.extend(done.measure_s.values())

    begun_ns = clock_ns()
    measured = run_duets(
        pair, [BENCHMARK], policy, seed=seed, on_launch=on_launch, clock_ns=clock_ns, sleep=sleep
    )[BENCHMARK]
    verdict = judge_duet(measured, policy, name=BENCHMARK.name)
    launches = pooled(measured).launches

    def ratios(statistic: Statistic) -> tuple[float, ...]:
        return tuple(round(launch.ratio(statistic), 6) for launch in launches)

    return Decision(
        injected=share,
        outcome=verdict.outcome,
        statistic=verdict.statistic,
        change=verdict.change,
        change_p50=verdict.change_p50,
        mean_change=None if verdict.outcome is Outcome.INVALID else mean_change(measured[0]),
        ratios_p10=ratios(Statistic.P10),
        ratios_pairs=ratios(Statistic.PAIRS),
        ratios_p50=ratios(Statistic.P50),
        sessions=len(measured),
        measure_s=sum(asking_s),
        total_s=(clock_ns() - begun_ns) / 1e9,
    )


def parse_shares(text: str) -> tuple[float, ...]:
    """Return the shares of `A/A,+5%`, each once. Raises ConfigError for what is no share."""
    shares = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        try:
            percent = 0.0 if word.upper() == "A/A" else float(word.removesuffix("%"))
        except ValueError:
            percent = -1.0
        if not 0 <= percent <= 100:
            raise ConfigError(
                f"--share {word!r} is no change that can be injected",
                hint="give A/A for none, or how much slower: +5%",
            )
        shares.append(percent / 100)
    if not shares:
        raise ConfigError(f"--share {text!r} names no change", hint="for example A/A,+5%")
    return tuple(dict.fromkeys(shares))


def _command(given: argparse.Namespace) -> int:
    _require_one_task(given)
    sessions = given.sessions or (QUICK_SESSIONS if given.quick else SESSIONS)
    if sessions < 1 or given.sessions == 0:
        raise ConfigError(f"--sessions {given.sessions} measures nothing", hint="give 1 or more")
    shares = parse_shares(given.share) if given.share is not None else INJECTED
    output = given.output or (NOISY_FILE if given.noisy else FILE)
    if given.merge:
        return _merge(given.merge, output)
    before = load(output) if given.append and output.exists() else None
    logs = {name: output.with_name(f"{output.stem}-{name}.log") for name in NAMES}
    require_place(output)
    for log in logs.values():
        log.write_bytes(b"")
    with ExitStack() as stack:
        folder = stack.enter_context(workspace(environment().cache_dir / "work"))
        write_model(folder)
        config = ServerConfig()
        # Before the neighbours come: they shall disturb requests, not choose their length.
        found = calibrate(folder, config, logs)
        calibrated = Recalibrated(
            found,
            lambda: calibrate(folder, config, logs),
            every=CALIBRATED_EVERY if not given.noisy else sys.maxsize,
        )
        seed = secrets.randbelow(2**20)
        neighbours = 0
        if given.noisy:
            neighbours = stack.enter_context(noisy_neighbours(seed=seed, log=folder / "neighbours"))
        empty = SelfTest(
            recorded_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            machine=this_machine().cls,
            policy=DuetPolicy(),
            request_ns=found.request_ns,
            confidence=CONFIDENCE,
            resolutions=(),
            decisions=(),
            neighbours=neighbours,
        )
        _require_alike(output, before, empty)
        return _measure(
            lambda share: slowed_pair(folder, config, calibrated(), share, logs),
            empty,
            before.decisions if before else (),
            sessions=sessions,
            shares=shares,
            seed=seed,
            output=output,
        )


def _require_one_task(given: argparse.Namespace) -> None:
    measuring = {
        "--sessions": given.sessions is not None,
        "--quick": given.quick,
        "--share": given.share is not None,
        "--append": given.append,
    }
    asked = [option for option, is_given in measuring.items() if is_given]
    if given.merge and asked:
        raise ConfigError(
            f"--merge measures nothing, and {asked[0]} says what to measure",
            hint="leave one of them out",
        )
    if given.quick and given.sessions is not None:
        raise ConfigError(
            "--quick and --sessions both say how many decisions", hint="leave one of them out"
        )


def _measure(
    pair: Callable[[float], Pair[PairLaunch]],
    empty: SelfTest,
    before: Sequence[Decision],
    *,
    sessions: int,
    shares: Sequence[float],
    seed: int,
    output: Path,
) -> int:
    total = sessions * len(shares)
    for line in report.introduction(
        empty.policy,
        machine=empty.machine,
        request_ns=empty.request_ns,
        decisions=total,
        neighbours=empty.neighbours,
    ):
        _say(line)
    decisions: list[Decision] = []

    def on_decision(decision: Decision) -> None:
        decisions.append(replace(decision, request_ns=empty.request_ns))
        _say(report.decision_line(len(decisions), total, decision))
        # An interrupted self-test keeps what it has.
        store(output, with_decisions(empty, [*before, *decisions]))

    selftest(
        pair,
        sessions=sessions,
        policy=empty.policy,
        shares=shares,
        seed=seed,
        on_decision=on_decision,
    )
    for line in [*report.summary(with_decisions(empty, [*before, *decisions])), f"stored {output}"]:
        _say(line)
    invalid = any(decision.outcome is Outcome.INVALID for decision in decisions)
    return EXIT_NO_VERDICT if invalid else EXIT_PASSED


def _merge(files: Sequence[Path], output: Path) -> int:
    found = [load(file) for file in files]
    for file, other in zip(files, found, strict=True):
        _require_alike(file, other, found[0])
    together = merged(found)
    store(output, together)
    for line in [*report.summary(together), f"stored {output}, of {len(files)} files"]:
        _say(line)
    return EXIT_PASSED


def _require_alike(file: Path, held: SelfTest | None, other: SelfTest) -> None:
    found = differences(held, other) if held else []
    if found:
        raise BaselineError(
            f"{file} cannot be counted together with these: {'; '.join(found)}",
            hint="count together what is alike only: name other files, or another --output",
        )


def _say(line: str) -> None:
    print(line, flush=True)
