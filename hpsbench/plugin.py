"""The pytest plugin: options, markers, the `gate` fixture, the summary and the exit status.

A root conftest loads it (`pytest_plugins = ["hpsbench.plugin"]`). What is decided here is only
when things happen in a pytest session; how they are judged is in `hpsbench.gate`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpsbench import baselines, gate, runs
from hpsbench.config import environment
from hpsbench.errors import BenchError
from hpsbench.load_curve import LoadCurve
from hpsbench.machine import find_gpus, this_machine
from hpsbench.measurements import Measurement
from hpsbench.models.variants import default_variants
from hpsbench.options import BenchOptions, add_options, require_hps_module, resolve_options
from hpsbench.report import files, html, markdown, terminal
from hpsbench.report.contents import earlier_runs, gather
from hpsbench.report.junit import verdict_properties
from hpsbench.reproduction import side_by_side
from hpsbench.session_fixtures import (  # noqa: F401  (pytest finds fixtures in a plugin's names)
    announce,
    open_checkpoint,
    progress,
    say_what_is_kept,
)
from hpsbench.session_state import (
    CLOCK_KEY,
    OPTIONS_KEY,
    STATE_KEY,
    SUITE_KEY,
    VERDICT_KEY,
    State,
)
from hpsbench.verdict import Verdict

MARKERS = (
    "gpu: needs an NVIDIA GPU; deselected where none is found",
    "server: starts a real Triton server",
    "left_out(reason): a benchmark that this machine cannot hold; skipped, and named",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    try:
        options = resolve_options(config)
    except BenchError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[OPTIONS_KEY] = options
    config.stash[SUITE_KEY] = options.suite
    config.stash[STATE_KEY] = State()
    # Ours is the one table, unless theirs is asked for. pytest-benchmark reads this after us.
    if not _wants_benchmark_table(config):
        config.option.benchmark_quiet = True


def pytest_report_header(config: pytest.Config) -> str:
    suite = config.stash[SUITE_KEY]
    strict = "strict" if suite.gate.strict else "not strict"
    return f"hpsbench: preset {suite.preset}, machine {this_machine().cls}, {strict} gate"


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    state = config.stash[STATE_KEY]
    if not find_gpus():
        no_gpu = [item for item in items if item.get_closest_marker("gpu")]
        state.without_gpu = len(no_gpu)
        if no_gpu:
            items[:] = [item for item in items if item not in no_gpu]
            config.hook.pytest_deselected(items=no_gpu)
    for item in filter(_is_gated, items):
        marker = item.get_closest_marker("benchmark")
        clock = item.stash[CLOCK_KEY] = gate.RecordedClock()
        options = {**(marker.kwargs if marker else {}), "timer": clock.seconds}
        item.add_marker(pytest.mark.benchmark(**options), append=False)
    yield
    if hasattr(config, "workerinput"):
        config.workeroutput["hpsbench_without_gpu"] = state.without_gpu  # type: ignore[attr-defined]
        if any(map(_measures, items)):
            # A worker cannot end the session: it runs nothing, and `pytest_testnodedown` speaks.
            config.workeroutput["hpsbench_gated"] = True  # type: ignore[attr-defined]
            items.clear()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    output = getattr(node, "workeroutput", {})
    node.config.stash[STATE_KEY].without_gpu = output.get("hpsbench_without_gpu", 0)  # type: ignore[attr-defined]
    if output.get("hpsbench_gated"):
        raise pytest.UsageError(
            "benchmarks cannot be measured beside each other, and pytest-xdist is active\n"
            "  hint: run them with -n0, apart from other tests; nothing was run"
        )


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_gated(item) and not item.get_closest_marker("gpu"):
            item.config.stash[STATE_KEY].narrowed = True


def pytest_report_collectionfinish(
    config: pytest.Config, items: Sequence[pytest.Item]
) -> list[str]:
    options = config.stash[OPTIONS_KEY]
    if options.variants or not any(map(_measures, items)):
        return []
    _, left_out = default_variants(options.suite)
    return [f"not measured: {name}: {reason}" for name, reason in left_out.items()]


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    if config.option.collectonly or not any(map(_measures, session.items)):
        return
    options, machine = config.stash[OPTIONS_KEY], this_machine()
    try:
        # Whatever is wrong with these is better said before the measuring than after.
        require_hps_module(options.suite)
        stored = baselines.load(options.baselines_dir, machine.cls)
        runs.prepare(options.runs_dir)
    except BenchError as error:
        raise pytest.UsageError(str(error)) from error
    commit = runs.commit_of(config.rootpath)
    run = runs.new_run(options.suite, machine, commit=commit)
    config.stash[STATE_KEY].gate = gate.SessionGate(options.suite, stored, run)


@pytest.fixture(name="gate")
def _gate(
    request: pytest.FixtureRequest, benchmark: gate.BenchmarkFixture
) -> Iterator[Callable[[Measurement], Verdict]]:
    """Record a measurement, judge it against its baseline, and hand it to pytest-benchmark.

    Call it once in a test. The test fails after its body if the verdict is REGRESSED or INVALID.
    """
    item: pytest.Item = request.node
    session_gate = request.config.stash[STATE_KEY].gate
    assert session_gate is not None, "collected with `gate`, so there is one"

    def judge(measurement: Measurement) -> Verdict:
        if VERDICT_KEY in item.stash:
            raise RuntimeError("gate() was called twice in one test; parametrize the test instead")
        verdict = item.stash[VERDICT_KEY] = session_gate.judge(item.nodeid, measurement)
        item.user_properties.extend(verdict_properties(verdict))
        gate.replay(benchmark, item.stash[CLOCK_KEY], measurement, verdict)
        return verdict

    yield judge
    if VERDICT_KEY not in item.stash:
        gate.replay_nothing(benchmark, item.stash[CLOCK_KEY])


@pytest.fixture
def record_load(request: pytest.FixtureRequest) -> Callable[[str, str, int, LoadCurve], None]:
    """Keep a curve in the run file: (benchmark, variant, batch size, curve).

    The test fails where a rate was not measured as asked, unless the server was saturated.
    """
    session_gate = request.config.stash[STATE_KEY].gate
    assert session_gate is not None, "collected with `record_load`, so there is one"

    def record(benchmark: str, variant: str, batch_size: int, curve: LoadCurve) -> None:
        session_gate.record_load(
            runs.LoadMeasurement(
                test=request.node.nodeid,
                benchmark=benchmark,
                variant=variant,
                batch_size=batch_size,
                curve=curve,
            )
        )
        for problem in curve.problems:
            pytest.fail(f"INVALID {benchmark}: {problem}", pytrace=False)

    return record


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("left_out")
    if marker is not None:
        (reason,) = marker.args
        item.config.stash[STATE_KEY].left_out.setdefault(reason, []).append(item.name)
        pytest.skip(f"left out: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield
    verdict = item.stash.get(VERDICT_KEY, None)
    if verdict is None and _is_gated(item):
        pytest.fail("the test has the gate fixture, and measured nothing with it", pytrace=False)
    if verdict is not None and verdict.outcome in gate.FAILING:
        item.config.stash[STATE_KEY].failed_by_gate.add(item.nodeid)
        text = f"{verdict.outcome.value} {verdict.text}\n{verdict.hint}"
        pytest.fail(text, pytrace=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # Fixtures that serve and measure say what is wrong and what to do: no traceback need tell it,
    # once for every benchmark.
    error = call.excinfo
    told = call.when == "setup" and error is not None and error.errisinstance(BenchError)
    if error is not None and told and not item.config.getoption("fulltrace"):
        report.longrepr = error.getrepr(style="value", chain=False)
    state = item.config.stash[STATE_KEY]
    if state.progress_shown:
        state.progress_shown = False
        _erase_progress(item.config)
    if report.failed:
        state.failed.add(item.nodeid)
        by_gate = report.when == "call" and item.nodeid in state.failed_by_gate
        state.failed_otherwise = state.failed_otherwise or not by_gate
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    state, options = config.stash[STATE_KEY], config.stash[OPTIONS_KEY]
    judged = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if state.gate is None or session.exitstatus not in judged:
        return
    run = state.gate.finish(_selection(session))
    if not run.verdicts and not run.loads:
        return
    state.run = run
    try:
        state.run_path = runs.save(options.runs_dir, run)
    except BenchError as error:
        state.problem, state.failed_otherwise = error, True
    else:
        if state.checkpoint is not None and state.checkpoint.is_whole:
            state.checkpoint.discard()
    session.exitstatus = gate.exit_code(
        run.verdicts,
        strict=options.suite.gate.strict,
        other_failures=state.failed_otherwise,
    )
    if state.problem is None:
        try:
            _write_reports(state, options, run)
        except BenchError as error:
            # The run is judged and stored: `hpsbench report` can still tell of it.
            state.problem = error


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    state, suite = config.stash[STATE_KEY], config.stash[SUITE_KEY]
    if state.without_gpu:
        terminalreporter.write_line(
            f"hpsbench: {state.without_gpu} tests marked gpu were deselected: no GPU here",
            yellow=True,
        )
    for reason, names in state.left_out.items():
        told = f"hpsbench: left out, for {reason}: {', '.join(names)}"
        terminalreporter.write_line(told, yellow=True)
    if state.run is None:
        say_what_is_kept(terminalreporter, state)
        return
    width = shutil.get_terminal_size().columns
    terminalreporter.section(f"hpsbench {suite.preset} on {state.run.machine.cls}")
    lines = [
        *terminal.table(state.run, concurrency=suite.load.concurrency, width=width),
        *terminal.engine_lines(state.run, width=width),
        *terminal.load_lines(state.run),
        *terminal.verdict_lines(state.run.verdicts, width=width),
        *terminal.closing_lines(
            state.run,
            strict=suite.gate.strict,
            side_by_side=side_by_side(state.run, state.gate.stored) if state.gate else None,
            stored=_shown_path(state.run_path, config) if state.run_path else None,
            report=_shown_path(state.report_path, config) if state.report_path else None,
        ),
    ]
    for line in lines:
        terminalreporter.write_line(line.text, **line.markup)
    say_what_is_kept(terminalreporter, state)
    if state.problem is not None:
        terminalreporter.write_line(f"error: {state.problem}", red=True)


def _write_reports(state: State, options: BenchOptions, run: runs.Run) -> None:
    earlier = earlier_runs(options.runs_dir, run)
    contents = gather(
        run,
        baselines_folder=options.baselines_dir,
        earlier=earlier,
        beside=options.runs_dir.parent,
    )
    page = options.runs_dir.parent / files.HTML_NAME
    files.write(page, html.page(contents))
    state.report_path = page
    summary = environment().step_summary
    if summary is not None:
        files.append(summary, markdown.summary(contents))


def _selection(session: pytest.Session) -> gate.Selection:
    config = session.config
    state, options = config.stash[STATE_KEY], config.stash[OPTIONS_KEY]
    given = config.option
    narrowing = ("keyword", "lf", "stepwise", "ignore", "ignore_glob", "benchmark_skip")
    batch_sizes_given = any(o.strip().startswith("load.batch_sizes") for o in options.overrides)
    return gate.Selection(
        prefixes=[_node_prefix(config, arg) for arg in config.args],
        whole=not (
            state.narrowed
            or session.shouldfail
            or session.shouldstop
            or any(getattr(given, name, None) for name in narrowing)
        ),
        variants=options.variants,
        batch_sizes=options.suite.load.batch_sizes if batch_sizes_given else None,
        failed=state.failed,
    )


def _node_prefix(config: pytest.Config, arg: str) -> str:
    path, colons, names = arg.partition("::")
    absolute = Path(os.path.normpath(config.invocation_params.dir / path))
    if not absolute.is_relative_to(config.rootpath):
        return arg
    return absolute.relative_to(config.rootpath).as_posix() + colons + names


def _shown_path(path: Path, config: pytest.Config) -> str:
    invoked = config.invocation_params.dir
    return str(path.relative_to(invoked) if path.is_relative_to(invoked) else path)


def _is_gated(item: pytest.Item) -> bool:
    return "gate" in getattr(item, "fixturenames", ())


def _measures(item: pytest.Item) -> bool:
    return _is_gated(item) or "record_load" in getattr(item, "fixturenames", ())


def _wants_benchmark_table(config: pytest.Config) -> bool:
    given = config.option
    asked = ("benchmark_columns", "benchmark_verbose", "benchmark_compare", "benchmark_histogram")
    return given.verbose > 0 or any(getattr(given, name, None) for name in asked)


def _erase_progress(config: pytest.Config) -> None:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        reporter.rewrite("", erase=True)
        reporter.rewrite("")
        reporter.flush()
