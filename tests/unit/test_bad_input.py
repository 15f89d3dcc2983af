"""What a command cannot use it refuses before it measures: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpsbench import cli

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Return a function that runs a command in a folder with `file` and `folder`: its error."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()

    def run(*arguments: str) -> str:
        try:
            code = cli.main(arguments)
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        assert (code, said.out) == (4, "")
        assert "\nhint: " in said.err
        assert {path.name for path in tmp_path.iterdir()} <= {"file", "folder", ".hpsbench"}
        return said.err

    return run


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("baseline show --baselines absent", "absent is no folder"),
        ("baseline show --baselines folder --machine x", "folder has nothing of machine 'x'"),
        ("report --baselines folder --results out", "folder has no baselines, so there are no re"),
        ("selftest --merge file --sessions 5", "--merge measures nothing, and --sessions says"),
        ("selftest --merge file --append", "--merge measures nothing, and --append says"),
        ("selftest --quick --sessions 5", "--quick and --sessions both say how many decisions"),
        ("load folder --model m --json file/x.json", "report file/x.json: Not a directory"),
        ("load folder --model m --json folder", "cannot write the report folder: Is a directory"),
        ("load folder --model m --rate 1e300", "more than 10,000,000 requests"),
        ("load folder --model m --duration 1e300", "more than a week"),
        ("load folder --model m --warm-up nan", "--warm-up nan has no end"),
        ("load folder --model m --seed -1", "--seed: -1 is no whole number from 0"),
        ("load folder --model m --connections 0", "a load needs a connection"),
        ("load folder --model m --shape x:0", "--shape 'x:0' is not NAME:N,N"),
        ("load folder --model m --shape x:9,999999999", "more values than a request can carry"),
        ("load folder --model m --input-data file", "file is no input data: Expecting value"),
        ("load folder --model m --batch-size 0", "--batch-size: 0 is no whole number from 1"),
        ("load folder --model m --input-data absent", "--input-data: absent is no file"),
        (
            "compare --baseline folder --candidate folder --model m --junit folder",
            "cannot write the report folder: Is a directory",
        ),
        (
            "compare --baseline folder --candidate folder --model m --input-data file",
            "file is no input data: Expecting value",
        ),
        (
            "compare --baseline folder --candidate folder --model m --shape x:0",
            "--shape 'x:0' is not NAME:N,N",
        ),
        (
            "compare --baseline folder --candidate folder --model m --input-data folder",
            "--input-data: folder is no file",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(refused: Refused, arguments: str, problem: str) -> None:
    assert problem in refused(*arguments.split())


@pytest.mark.parametrize(
    "command",
    [
        "baseline update file",
        "report file",
        "selftest --merge file",
        "load folder --model m --input-data file",
        "doctor --config file",
    ],
)
def test_json_nested_too_deeply_is_no_traceback(refused: Refused, command: str) -> None:
    Path("file").write_text("[" * 200_000)
    assert "maximum recursion depth exceeded" in refused(*command.split())


def test_a_file_where_the_log_belongs_is_named(refused: Refused) -> None:
    Path(".hpsbench").touch()
    told = refused("load", "folder", "--model", "m")
    assert ".hpsbench/load.log: Not a directory" in told


def test_memory_that_is_not_there_is_no_traceback(refused: Refused) -> None:
    told = refused("profile", "--rows", "1000000000000000", "--dim", "128")
    assert told.startswith("error: not enough memory: ")
