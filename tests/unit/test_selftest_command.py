"""`hpsbench selftest`: its options, what it stores as it goes, and how files are merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpsbench import cli
from hpsbench.commands import selftest
from hpsbench.commands.selftest import parse_shares
from hpsbench.duets import selftests
from hpsbench.duets.resolution import INJECTED, Decision
from hpsbench.duets.slowed import Calibration
from hpsbench.errors import ConfigError
from hpsbench.report import resolution as report
from hpsbench.verdict import Outcome

MS = 1_000_000


@pytest.mark.parametrize("sessions", ["0", "-2"])
def test_no_session_is_an_error(
    sessions: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["selftest", "--sessions", sessions]) == 4
    assert f"--sessions {sessions} measures nothing" in capsys.readouterr().err


def a_decision(outcome: Outcome = Outcome.PASS, share: float = 0.0) -> Decision:
    return Decision(
        injected=share,
        outcome=outcome,
        statistic="p10",
        change=None,
        change_p50=None,
        mean_change=None,
        ratios_p10=(),
        ratios_pairs=(),
        ratios_p50=(),
        sessions=1,
        measure_s=1.0,
        total_s=2.0,
    )


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """Let the command measure made-up decisions; return the shares that it asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSBENCH_CACHE_DIR", str(tmp_path / "cache"))
    found = Calibration(steps=320, step_ns=5000.0, request_ns=2 * MS)
    monkeypatch.setattr(selftest, "calibrate", lambda *_: found)
    asked: list[tuple[float, ...]] = []

    def measured(
        pair: object, *, sessions: int, shares: tuple[float, ...], on_decision: Any, **_: object
    ) -> None:
        asked.append(shares)
        for _number in range(sessions):
            for share in shares:
                on_decision(a_decision(share=share))

    monkeypatch.setattr(selftest, "selftest", measured)
    return asked


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.PASS, 0), (Outcome.INVALID, 10)])
def test_the_command_stores_as_it_goes_and_says_where(
    outcome: Outcome,
    code: int,
    command: list[tuple[float, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored_after: list[int] = []

    def measured(pair: object, *, sessions: int, on_decision: Any, **_: object) -> None:
        for _number in range(sessions):
            on_decision(a_decision(outcome))
            stored_after.append(len(selftests.load(selftests.FILE).decisions))

    monkeypatch.setattr(selftest, "selftest", measured)
    assert cli.main(["selftest", "--quick"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == "stored .hpsbench/selftest.json"
    assert stored_after == [1, 2, 3]
    assert selftests.load(selftests.FILE).decisions[0].outcome is outcome


def test_decisions_of_some_shares_are_collected_in_several_goes(
    command: list[tuple[float, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["selftest", "--sessions", "2", "--share", "A/A,+5%"]) == 0
    assert cli.main(["selftest", "--sessions", "3", "--share", "+5%", "--append"]) == 0
    assert command == [(0.0, 0.05), (0.05,)]
    held = selftests.load(selftests.FILE)
    assert [row.regressed.of for row in held.resolutions] == [2, 5]
    assert held.request_ns == 2 * MS
    # The summary is of all that the file holds.
    assert "     +5%         -  0 of 5 " in capsys.readouterr().out
    assert cli.main(["selftest", "--sessions", "1", "--share", "A/A"]) == 0
    assert len(selftests.load(selftests.FILE).decisions) == 1


def test_copies_write_their_own_files_and_are_merged(
    command: list[tuple[float, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        own = ("--output", f"copies/{name}.json")
        assert cli.main(["selftest", "--sessions", "2", "--share", "A/A", *own]) == 0
    files = sorted(p.name for p in Path("copies").iterdir())
    assert files == [
        f"{name}{rest}"
        for name in ("one", "two")
        for rest in ("-baseline.log", "-candidate.log", ".json")
    ]
    capsys.readouterr()
    asked = len(command)
    assert cli.main(["selftest", "--merge", "copies/one.json", "copies/two.json"]) == 0
    assert len(command) == asked
    assert selftests.load(selftests.FILE).resolutions[0].regressed.of == 4
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "stored .hpsbench/selftest.json, of 2 files"
    assert any(line.startswith("     A/A         -  0 of 4 (0% to 60%)") for line in out)


def test_noise_is_counted_apart_from_quiet(
    command: list[tuple[float, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["selftest", "--sessions", "1", "--share", "A/A"]) == 0
    assert cli.main(["selftest", "--sessions", "1", "--share", "A/A", "--noisy"]) == 0
    noisy = selftests.load(selftests.NOISY_FILE)
    assert noisy.neighbours >= 1
    assert "with noisy neighbours" in report.quotation(noisy)
    assert f"neighbours {noisy.neighbours}, in bursts" in capsys.readouterr().out
    both = ["--append", "--noisy", "--output", str(selftests.FILE)]
    assert cli.main(["selftest", "--sessions", "1", *both]) == 4
    assert cli.main(["selftest", "--merge", str(selftests.FILE), str(selftests.NOISY_FILE)]) == 4
    assert "cannot be counted together with these: noisy neighbours" in capsys.readouterr().err
    assert len(selftests.load(selftests.FILE).decisions) == 1


def test_shares_are_written_as_they_are_shown() -> None:
    shown = ",".join(map(report.share_name, INJECTED))
    assert shown == "A/A,+5%,+10%,+20%"
    assert parse_shares(shown) == INJECTED
    assert parse_shares(" a/a , 5 ,+5%") == (0.0, 0.05)


@pytest.mark.parametrize("text", ["-5%", "much", "+200%", "", ","])
def test_what_cannot_be_injected_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--share"):
        parse_shares(text)


@pytest.mark.parametrize("place", ["a-file/stored.json", "a-folder"])
def test_where_no_file_can_be_is_told_before_anything_is_measured(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").write_text("")
    (tmp_path / "a-folder").mkdir()
    assert cli.main(["selftest", "--output", str(tmp_path / place)]) == 4
    told = capsys.readouterr().err
    assert f"cannot be stored in {tmp_path / place}" in told
    assert "hint: " in told
