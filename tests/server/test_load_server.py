"""`hpsbench load` on a real Triton."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpsbench import cli
from hpsbench.servers.probe import PROBE_MODEL
from hpsbench.servers.triton import TritonServer

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def _below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(*arguments: str) -> int:
    return cli.main(["load", *arguments, "--model", PROBE_MODEL, "--shape", "x:16"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_rates_are_measured_and_written(
    probe_server: TritonServer,
    model_repository: Path,
    protocol: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A server that runs is looked for gRPC at the next port only, Triton's default.
    source = f"http://{probe_server.http}" if protocol == "http" else str(model_repository)
    path = tmp_path / "load.json"
    rates = ("--rate", "40", "--rate", "80", "--duration", "2", "--warm-up", "0.5")
    code = load(
        source, *rates, "--protocol", protocol, "--slo-ms", "1000", "--json", str(path),
        "--arrivals", "constant",
    )  # fmt: skip
    out = capsys.readouterr().out
    written = json.loads(path.read_text())
    points = written["curve"]["points"]
    assert [(p["asked_hz"], p["requests"], p["failed"]) for p in points] == [
        (40, 80, 0), (80, 160, 0),
    ]  # fmt: skip
    assert [p["within_slo"] for p in points] == [80, 160]
    assert "100.0%" in out
    assert "p99 needs at least" in out
    # A machine busy with other things may delay a few of so few requests.
    assert code == (10 if any(p["invalid"] for p in points) else 0)
    assert probe_server.is_alive()


def test_a_sweep_finds_capacity_and_knee_of_a_repository(
    model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(str(model_repository), "--duration", "0.5", "--warm-up", "0.1")
    out = capsys.readouterr().out
    assert "answers/s of closed-loop clients" in out
    assert "\nknee " in out
    assert "saturated" in out


def test_a_model_that_fails_is_an_error_in_its_words(
    probe_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://{probe_server.http}"
    assert cli.main(["load", url, "--model", "nobody", "--rate", "10"]) == 4
    assert "nobody" in capsys.readouterr().err
