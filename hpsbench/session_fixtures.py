"""The plugin's fixtures around a session: what it shows while it runs, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpsbench import checkpoint, gate
from hpsbench.checkpoint import Checkpoint, InterruptedSession
from hpsbench.errors import BenchError
from hpsbench.report import terminal
from hpsbench.session import Plan, Progress, phases_of
from hpsbench.session_state import OPTIONS_KEY, STATE_KEY, State


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Callable[[Progress], None]:
    """Show a `Progress` on the terminal while tests run, past pytest's capture."""
    config = request.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return lambda _: None
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    state = config.stash[STATE_KEY]

    def rewrite(text: str) -> None:
        reporter.rewrite(text, erase=True)
        state.progress_shown = True

    line = terminal.ProgressLine(reporter.write_line, rewrite if reporter.isatty else None)

    def show(progress: Progress) -> None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            line(progress)
            reporter.flush()

    return show


@pytest.fixture(scope="session")
def announce(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Write a line on the terminal while tests run, past pytest's capture."""
    config = request.config
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = config.pluginmanager.get_plugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(text)

    return write if reporter is not None else lambda _: None


@pytest.fixture(scope="session")
def open_checkpoint(
    pytestconfig: pytest.Config, announce: Callable[[str], None]
) -> Callable[[Plan], Checkpoint]:
    """Return the checkpoint of a plan's session: of the interrupted one with --resume, else new."""
    state, options = pytestconfig.stash[STATE_KEY], pytestconfig.stash[OPTIONS_KEY]
    session_gate = state.gate
    assert session_gate is not None, "only a gated session measures"

    def opened(plan: Plan) -> Checkpoint:
        folder, run = options.interrupted_dir, session_gate.run
        sources = Path(checkpoint.__file__).parent
        identity = checkpoint.identity_of(options.suite, plan, run.machine, sources=sources)
        state.num_parts = options.suite.load.launches * len(phases_of(plan))
        if options.resume:
            try:
                state.checkpoint = checkpoint.resumable(folder, identity)
            except BenchError as error:
                pytest.exit(str(error), returncode=gate.EXIT_USAGE)
            session_gate.resumed(state.checkpoint.session.recorded_at)
            announce(
                f"going on with the session of {state.checkpoint.session.recorded_at}: "
                f"{state.checkpoint.num_kept} of {state.num_parts} parts are measured"
            )
            return state.checkpoint
        alike = checkpoint.like(checkpoint.interrupted(folder), identity)
        if alike is not None:
            announce(
                f"the session of {alike.session.recorded_at} was interrupted with "
                f"{alike.num_kept} of {state.num_parts} parts measured: --resume goes on with it"
            )
        session = InterruptedSession(
            run_id=run.run_id,
            recorded_at=run.recorded_at,
            identity=identity,
            num_parts=state.num_parts,
        )
        state.checkpoint = Checkpoint(folder, session)
        return state.checkpoint

    return opened


def say_what_is_kept(reporter: pytest.TerminalReporter, state: State) -> None:
    kept = 0 if state.checkpoint is None else state.checkpoint.num_kept
    if kept:
        reporter.write_line(
            f"hpsbench: {kept} of {state.num_parts} parts are measured and kept; the same command "
            "with --resume goes on with them",
            yellow=True,
        )
