from __future__ import annotations

from pathlib import Path

import pytest

from hpsbench import cli
from hpsbench.commands import load as load_command
from hpsbench.errors import ConfigError
from hpsbench.load_session import LoadPlan


def plan(*options: str) -> LoadPlan:
    arguments = ["load", "http://h:1", "--model", "m", *options]
    return load_command.plan_of(cli.build_parser().parse_args(arguments))


def test_without_a_rate_it_is_a_sweep() -> None:
    assert plan() == LoadPlan()
    assert plan().rates_hz == ()


def test_options_become_a_plan() -> None:
    found = plan("--rate", "5", "--rate", "7.5", "--slo-ms", "2.5", "--arrivals", "spike")
    assert (found.rates_hz, found.slo_ns, found.arrivals.kind) == ((5, 7.5), 2_500_000, "spike")


def test_recorded_intervals_are_sent_as_recorded_unless_a_rate_is_given(tmp_path: Path) -> None:
    path = tmp_path / "intervals"
    path.write_text("1000\n3000\n")
    assert plan("--request-intervals", str(path)).rates_hz == (500,)
    assert plan("--request-intervals", str(path), "--rate", "100").rates_hz == (100,)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--rate", "0"], "must be positive"),
        (["--duration", "0"], "must be positive"),
        (["--connections", "0"], "needs a connection"),
        (["--slo-ms", "0"], "--slo-ms 0.0 cannot be met"),
        (["--arrivals", "recorded"], "without a record"),
        (["--arrivals", "spike", "--request-intervals", "x"], "--arrivals spike with"),
    ],
)
def test_what_measures_nothing_is_refused(options: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        plan(*options)


def test_what_is_neither_folder_nor_url_is_told_without_talk_of_revisions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["load", "nofolder", "--model", "m"]) == cli.EXIT_USAGE
    said = capsys.readouterr().err
    assert "nofolder is no folder and no URL\n" in said
    assert "revision" not in said


@pytest.mark.parametrize("option", ["--rate", "--duration", "--warm-up", "--slo-ms"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_number_without_end_is_refused(option: str, value: str) -> None:
    arguments = ["load", "repository", "--model", "m", option, value]
    with pytest.raises(ConfigError, match=option):
        load_command.plan_of(cli.build_parser().parse_args(arguments))
