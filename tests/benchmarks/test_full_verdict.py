"""What a full verdict costs: twelve benchmarks of 2 ms requests, decided in one comparison.

Real Tritons and the real command. Once both sides are the same, which takes one session of most;
and once every candidate is slower, so that each decision needs a second: the most there is.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from hpsbench import cli
from hpsbench.config import ServerConfig
from hpsbench.duets import comparisons
from hpsbench.duets.comparisons import StoredComparison
from hpsbench.duets.pairs import NAMES
from hpsbench.duets.slowed import calibrate, write_model

pytestmark = pytest.mark.server

BENCHMARKS = [f"model_{number}" for number in range(12)]
REQUEST_NS = 2e6
#: Seconds: of all twelve decisions with every start of a server, and of one decision's requests.
TOTAL_S, DECISION_S = 240.0, 10.0
SLOWER = 0.2


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many steps a request of 2 ms takes here, among twelve models on each of two servers."""
    folder = tmp_path_factory.mktemp("calibration")
    write_model(folder / "models")
    logs = {name: folder / f"{name}.log" for name in NAMES}
    alone = calibrate(folder / "models", ServerConfig(), logs).steps
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _, compared = compare(folder, alone, 0.0, "--launches", "1")
    return round(alone * REQUEST_NS / mean_request_ns(compared))


def mean_request_ns(compared: StoredComparison) -> float:
    return fmean(ln.baseline_p10_ns for b in compared.benchmarks for ln in b.launches)


def write_models(folder: Path, slower: float = 0.0) -> str:
    for name in BENCHMARKS:
        write_model(folder, name)
        model = folder / name / "1" / "model.py"
        text = model.read_text()
        assert text.count("range(steps)") == 1
        model.write_text(text.replace("range(steps)", f"range(round({1 + slower} * steps))"))
    return str(folder)


def compare(folder: Path, steps: int, slower: float, *options: str) -> tuple[int, StoredComparison]:
    """Run the command in `folder`, and return its exit status and what it stored."""
    (folder / "steps.json").write_text(json.dumps({"data": [{"steps": [steps]}]}))
    code = cli.main([
        "compare",
        *("--baseline", write_models(folder / "old")),
        *("--candidate", write_models(folder / "new", slower)),
        *("--model", ",".join(BENCHMARKS), "--input-data", "steps.json"),
        # More steps add up to another sum.
        *("--answer-tolerance", "inf"),
        *options,
    ])  # fmt: skip
    (file,) = comparisons.FOLDER.glob("*.json")
    return code, comparisons.load(file)


@pytest.mark.parametrize("slower", [0.0, SLOWER], ids=["same", "all-slower"])
def test_twelve_benchmarks_are_decided_in_four_minutes(
    slower: float,
    steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    begun_s = time.monotonic()
    code, compared = compare(tmp_path, steps, slower)
    total_s = time.monotonic() - begun_s
    out = capsys.readouterr().out
    took_s = [b.measure_s or 0.0 for b in compared.benchmarks]
    counts = Counter(v.outcome.value for v in compared.verdicts)
    with capsys.disabled():
        print(
            f"\n{len(BENCHMARKS)} benchmarks, {'all slower' if slower else 'the same'}: "
            f"{total_s:.0f} s in all ({TOTAL_S:.0f} at most), {max(took_s):.1f} s of requests for "
            f"one decision ({DECISION_S:.0f} at most); p10 of a request "
            f"{mean_request_ns(compared) / 1e6:.1f} ms, load average {os.getloadavg()[0]:.1f} on "
            f"{len(os.sched_getaffinity(0))} CPUs; "
            + ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        )
    assert sorted(b.model for b in compared.benchmarks) == sorted(BENCHMARKS), out
    assert "INVALID" not in counts, out
    if slower:
        assert code == 1, out
        # Each was confirmed, so this is what decisions cost at most.
        assert {ln.session for b in compared.benchmarks for ln in b.launches} == {1, 2}
    assert total_s <= TOTAL_S, out
    assert max(took_s) <= DECISION_S, out
