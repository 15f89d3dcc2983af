"""`hpsbench compare` between real Tritons: equal models, a slower one, several, broken ones."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpsbench import cli
from hpsbench.commands import compare
from hpsbench.duets import comparisons
from hpsbench.servers.probe import PROBE_MODEL
from hpsbench.servers.triton import TritonServer
from hpsbench.telemetry import unwatched
from hpsbench.verdict import Outcome

pytestmark = pytest.mark.server

#: Says its inputs and outputs itself, so that Triton has to complete its configuration.
_MODEL = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}})
        config.add_output({{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 4]}})
        config.set_max_batch_size(0)
        return config

    def initialize(self, arguments):
        self.rows = np.ones((2000, 64), np.float32)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        for _ in range({steps}):
            self.rows.sum()
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)])
"""
FEW = ("--launches", "2", "--pairs", "60", "--warm-up", "20")


def repository(folder: Path, steps: int) -> str:
    (folder / "worker" / "1").mkdir(parents=True)
    (folder / "worker" / "config.pbtxt").write_text('backend: "python"\n')
    (folder / "worker" / "1" / "model.py").write_text(_MODEL.format(steps=steps))
    return str(folder)


@pytest.fixture(autouse=True)
def _below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("steps", "regresses", "protocol"),
    [(40, False, "http"), (40, False, "grpc"), (80, True, "http")],
)
def test_only_a_slower_model_regresses(
    steps: int,
    regresses: bool,
    protocol: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    baseline, candidate = repository(tmp_path / "old", 40), repository(tmp_path / "new", steps)
    sides = ("--baseline", baseline, "--candidate", candidate, "--model", "worker")
    code = cli.main(["compare", *sides, "--batch-size", "3", "--protocol", protocol, *FEW])
    out = capsys.readouterr().out
    assert (code == 1) == regresses, out
    assert "\nanswers are the same (1 request)\n" in out
    assert len(list((tmp_path / ".hpsbench" / "comparisons").glob("*.json"))) == 1
    assert ("\nREGRESSED worker: " in out) == regresses
    assert (tmp_path / ".hpsbench" / "compare-baseline.log").stat().st_size > 0


#: How a change gets into a stage, and how the verdict then calls that stage.
MOVED = {
    "infer": ("model.py", "x = pb_utils", "__import__('time').sleep(0.002); x = pb_utils"),
    # Triton holds a batching model's request back, hoping for others.
    "queue": (
        "config.pbtxt",
        'backend: "python"',
        'backend: "python"\ndynamic_batching { max_queue_delay_microseconds: 2000 }',
    ),
}


@pytest.mark.parametrize("stage", MOVED)
def test_a_regression_names_the_stage_that_moved(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, candidate = repository(tmp_path / "old", 40), repository(tmp_path / "new", 40)
    for side in ("old", "new"):
        model = tmp_path / side / "worker" / "1" / "model.py"
        text = model.read_text().replace("[-1, 4]", "[4]").replace("size(0)", "size(8)")
        model.write_text(text)
    name, before, after = MOVED[stage]
    (changed,) = (tmp_path / "new").rglob(name)
    changed.write_text(changed.read_text().replace(before, after))
    sides = ("--baseline", baseline, "--candidate", candidate, "--model", "worker")
    code = cli.main(["compare", *sides, *FEW])
    out = capsys.readouterr().out
    assert code == 1, out
    # 2 ms and what comes with it, of which this stage has nearly all.
    found = re.search(rf"; of \+(\d\.\d+) ms, {stage} \+(\d\.\d+) ms \(\+", out)
    assert found, out
    whole, moved = map(float, found.groups())
    assert 1.8 < whole < 3.5
    assert moved > 0.8 * whole


def test_servers_that_run_are_compared_and_go_on(
    probe_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://{probe_server.http}"
    sides = ("--baseline", url, "--candidate", url, "--model", PROBE_MODEL)
    code = cli.main(["compare", *sides, "--shape", "x:16", *FEW])
    out = capsys.readouterr().out
    assert code in (0, 10), out
    assert "runs already" in out
    assert probe_server.is_alive()


def test_a_model_that_answers_otherwise_is_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, candidate = repository(tmp_path / "old", 1), repository(tmp_path / "new", 1)
    model = tmp_path / "new" / "worker" / "1" / "model.py"
    model.write_text(model.read_text().replace("x + 1", "x + 1.5"))
    sides = ("--baseline", baseline, "--candidate", candidate, "--model", "worker")
    assert cli.main(["compare", *sides, "--batch-size", "3", *FEW]) == 10
    out = capsys.readouterr().out
    assert "\nINVALID worker: answers differ: by 0.5 at most" in out


def test_a_model_that_fails_requests_gets_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, candidate = repository(tmp_path / "old", 1), repository(tmp_path / "new", 1)
    model = tmp_path / "new" / "worker" / "1" / "model.py"
    model.write_text(model.read_text().replace("x + 1", "no_such_name"))
    sides = ("--baseline", baseline, "--candidate", candidate, "--model", "worker")
    assert cli.main(["compare", *sides, "--batch-size", "3", *FEW]) == 10
    out = capsys.readouterr().out
    assert "\nINVALID worker: launch 1: candidate was given up" in out
    assert "no_such_name" in out


#: Sleeps, so that others who are busy on this machine change little of what it takes.
_BATCHING = """\
import time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        time.sleep(0.05 + ({more_s} if len(x) == {slow_batch} else 0))
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", {answer})])
"""
_BATCHING_CONFIG = """\
backend: "python"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }]
"""


@pytest.fixture
def _unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let others use all of a machine on which these servers sleep."""
    monkeypatch.setattr(compare, "machine_watch", lambda **_: nullcontext(unwatched))


SLOW_AND_FEW = ("--launches", "2", "--pairs", "20", "--warm-up", "2")


def many(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(_BATCHING_CONFIG)
        write_batching(folder, name)
    return str(folder)


def write_batching(
    folder: Path, name: str, *, more_s: float = 0.0, slow_batch: int = 0, answer: str = "x + 1"
) -> None:
    text = _BATCHING.format(more_s=more_s, slow_batch=slow_batch, answer=answer)
    (folder / name / "1" / "model.py").write_text(text)


@pytest.mark.usefixtures("_unwatched")
def test_of_several_models_and_batch_sizes_only_the_slowed_one_regresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("dlrm", "ranker")
    sides = ("--baseline", many(tmp_path / "old", *names), "--candidate")
    sides = (*sides, many(tmp_path / "new", *names))
    write_batching(tmp_path / "new", "ranker", more_s=0.03, slow_batch=8)
    command = ("compare", *sides, "--model", ",".join(names), "--batch-size", "2,8")
    code = cli.main([*command, *SLOW_AND_FEW, "--junit", "junit.xml"])
    out = capsys.readouterr().out
    (file,) = (tmp_path / ".hpsbench" / "comparisons").glob("*.json")
    compared = comparisons.load(file)
    regressed = [v.benchmark for v in compared.verdicts if v.outcome is Outcome.REGRESSED]
    assert regressed == ["ranker-b8"], out
    assert code == 1
    assert sorted(v.benchmark for v in compared.verdicts) == [
        f"{name}-b{size}" for name in names for size in (2, 8)
    ]
    assert re.search(r"\nREGRESSED ranker-b8: .*; of \+[\d.]+ ms, infer \+", out)
    cases = ElementTree.parse(tmp_path / "junit.xml").findall("testsuite/testcase")
    assert [case.get("name") for case in cases if case.find("failure") is not None] == regressed
    assert len(cases) == 4
    # A start of both servers serves all of them: the confirming session included.
    log = (tmp_path / ".hpsbench" / "compare-candidate.log").read_text("utf-8", "replace")
    assert log.count("Started HTTPService") == 4


@pytest.mark.usefixtures("_unwatched")
def test_what_is_broken_of_several_is_invalid_and_the_rest_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("dlrm", "failing", "killing", "other")
    sides = ("--baseline", many(tmp_path / "old", *names), "--candidate")
    sides = (*sides, many(tmp_path / "new", *names))
    write_batching(tmp_path / "new", "failing", answer="no_such_name")
    # Ends the whole of tritonserver, but only once it is measured.
    write_batching(
        tmp_path / "new",
        "killing",
        answer="x + 1 if self.fine() else __import__('os').kill(__import__('os').getppid(), 9)",
    )
    model = tmp_path / "new" / "killing" / "1" / "model.py"
    model.write_text(
        model.read_text()
        + "\n    asked = 0\n\n    def fine(self):\n"
        + "        self.asked += 1\n        return self.asked < 9\n"
    )
    write_batching(tmp_path / "new", "other", answer="x + 1.5")
    command = ("compare", *sides, "--model", ",".join(names), "--batch-size", "2")
    assert cli.main([*command, *SLOW_AND_FEW]) == 10
    out = capsys.readouterr().out
    assert "\nINVALID failing-b2: launch 1: candidate was given up" in out
    assert "no_such_name" in out
    assert re.search(r"\nINVALID killing-b2: launch 1: triton .*(signal|ended|status)", out), out
    assert "\nINVALID other-b2: answers differ: by 0.5 at most" in out
    (file,) = (tmp_path / ".hpsbench" / "comparisons").glob("*.json")
    launches = {b.name: len(b.launches) for b in comparisons.load(file).benchmarks}
    assert launches["dlrm-b2"] in (2, 4)
    assert [launches[f"{name}-b2"] for name in names[1:]] == [0, 0, 0]
