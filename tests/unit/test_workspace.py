from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpsbench.errors import TableError
from hpsbench.workspace import workspace

HOLD = """
import sys, time
from pathlib import Path
from hpsbench.workspace import workspace
with workspace(Path(sys.argv[1])) as folder:
    (folder / "rows").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(60)
"""


def hold(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as lines:
        return process, Path(lines.readline().strip())


def test_the_folder_is_gone_afterwards_even_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with workspace(tmp_path) as folder:
            (folder / "rows").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_folder(tmp_path: Path) -> None:
    process, held = hold(tmp_path)
    assert (held / "rows").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while held.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nobody_holds_goes_with_the_next_run(tmp_path: Path) -> None:
    process, held = hold(tmp_path)
    (tmp_path / "run-left").mkdir()
    (tmp_path / "run-left" / "lock").touch()
    try:
        with workspace(tmp_path) as folder:
            assert {*tmp_path.iterdir()} == {folder, held}
    finally:
        process.kill()
        process.wait()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TableError, match=r"no working folder below .*file/below"),
        workspace(tmp_path / "file" / "below"),
    ):
        pass
