from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from hpsbench.load.perf_analyzer import (
    PerfAnalyzer,
    PerfAnalyzerError,
    find_or_fetch_perf_analyzer,
    input_data,
    parse_report,
)
from hpsbench.servers.endpoint import Endpoint

ENDPOINT = Endpoint(
    http="127.0.0.1:1", grpc=None, metrics=None, model="tiny", timed_models=("tiny",)
)
INPUTS = {"keys": np.arange(4, dtype=np.int32).reshape(2, 2)}

#: What perf_analyzer 2.50 wrote about a small model.
REPORT = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,\
Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,p50 latency,\
p90 latency,p95 latency,p99 latency,Avg latency,request/response,response wait
1,1998.76,56,135,14,13,102,39,0,330,397,433,811,362,56,300
"""


def program(folder: Path, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "perf_analyzer"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_report_is_read() -> None:
    report = parse_report(REPORT)
    assert (report.mean_ns, report.p50_ns, report.p99_ns) == (362_000, 330_000, 811_000)
    assert (report.queue_ns, report.compute_infer_ns) == (14_000, 102_000)
    assert report.requests_per_second == 1998.76


@pytest.mark.parametrize("text", ["", "Concurrency\n", REPORT.replace("Avg latency", "Mean")])
def test_a_report_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(PerfAnalyzerError, match="report cannot be read"):
        parse_report(text)


def test_inputs_keep_their_bytes() -> None:
    (request,) = input_data(INPUTS)["data"]  # type: ignore[misc, attr-defined]
    assert base64.b64decode(request["keys"]["b64"]) == INPUTS["keys"].tobytes()


def test_it_is_asked_for_the_model_and_the_shapes(tmp_path: Path) -> None:
    script = f'echo "$@" > {tmp_path}/asked\ncat > "${{10}}" <<\'END\'\n{REPORT}END'
    report = PerfAnalyzer(program=program(tmp_path, script)).measure(ENDPOINT, INPUTS)
    assert report.mean_ns == 362_000
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("-m tiny -i http -u 127.0.0.1:1 --input-data ")
    assert "--shape keys:2,2 " in asked


FAILURES = {
    "status": ("echo error: no such model; exit 99", "failed with status 99: error: no such model"),
    "no report": ("echo nothing to do", "wrote no report on tiny: nothing to do"),
    "library": ("echo 'libb64.so.0d: cannot open'; exit 127", "did not start: libb64.so.0d"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_its_failures_are_told_in_its_words(tmp_path: Path, name: str) -> None:
    script, problem = FAILURES[name]
    with pytest.raises(PerfAnalyzerError, match=re.escape(problem)):
        PerfAnalyzer(program=program(tmp_path, script)).measure(ENDPOINT, INPUTS)


def test_one_on_the_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = program(tmp_path, "echo Perf Analyzer Version 2.50")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_or_fetch_perf_analyzer(tmp_path / "cache").program == found
    assert not (tmp_path / "cache").exists()


def test_one_that_cannot_be_fetched_names_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    no_pip = program(tmp_path / "python", "echo offline >&2; exit 1")
    monkeypatch.setattr("sys.executable", str(no_pip))
    with pytest.raises(PerfAnalyzerError, match=r"could not fetch tritonclient==2\.50\.0: offline"):
        find_or_fetch_perf_analyzer(tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("perf_analyzer*")) == [tmp_path / "cache/perf_analyzer"]
