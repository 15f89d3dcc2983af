"""What Triton's trace files say, in its own format."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench.servers.traces import STAGES, RequestTrace, Tracing, parse_traces

# The timestamps of one step, in the order that Triton takes them.
NAMES = (
    "REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START",
    "COMPUTE_END", "REQUEST_END",
)  # fmt: skip


def step(*times: int) -> dict[str, int]:
    return dict(zip(NAMES, times, strict=True))


def entries(number: int, model: str, stamps: dict[str, int], parent: int | None = None) -> str:
    head = {"id": number, "model_name": model, "model_version": 1}
    if parent is not None:
        head["parent_id"] = parent
    rest = [{"id": number, "timestamps": [{"name": n, "ns": ns}]} for n, ns in stamps.items()]
    return ",".join(json.dumps(entry) for entry in (head, *rest))


SINGLE = {**step(110, 120, 150, 160, 260, 400, 410), "INFER_RESPONSE_COMPLETE": 280}
FIRST, SECOND = step(110, 120, 150, 160, 260, 300, 310), step(290, 295, 320, 330, 430, 460, 470)
WHOLE = {"REQUEST_START": 105, "INFER_RESPONSE_COMPLETE": 450, "REQUEST_END": 480}
ENSEMBLE = ",".join(
    (entries(2, "first", FIRST, 1), entries(3, "second", SECOND, 1), entries(1, "both", WHOLE))
)


def test_a_request_is_split_into_what_the_client_waited_for() -> None:
    (request,) = parse_traces(["[" + entries(7, "dlrm", SINGLE) + "]"])
    assert (request.model, request.start_ns) == ("dlrm", 110)
    # What the backend does after the answer has gone, the client does not wait for.
    assert request.stages(100, 300) == {
        "queue": 30, "compute_input": 10, "compute_infer": 100, "compute_output": 20,
        "overhead": 40,
    }  # fmt: skip


def test_the_steps_of_an_ensemble_are_its_request() -> None:
    (request,) = parse_traces(["[" + ENSEMBLE + "]"])
    assert (request.model, len(request.steps)) == ("both", 2)
    # From 295 on the second step waits, though the first still puts its answer away.
    assert request.stages(100, 500) == {
        "queue": 30 + 25, "compute_input": 20, "compute_infer": 200, "compute_output": 35 + 20,
        "overhead": 20 + 50,
    }  # fmt: skip


def test_steps_beside_each_other_count_once() -> None:
    late = step(110, 120, 200, 210, 310, 320, 330)
    both = {"REQUEST_START": 105, "INFER_RESPONSE_COMPLETE": 330, "REQUEST_END": 340}
    request = RequestTrace(model="m", timestamps=both, steps=(FIRST, late))
    stages = request.stages(100, 350)
    # While one computes it does not matter that the other waits.
    assert stages["compute_infer"] == 100 + 50
    assert stages["queue"] == 30
    assert sum(stages.values()) == 250


def test_the_files_of_a_server_count_together() -> None:
    single = entries(9, "b", SINGLE)
    assert [r.model for r in parse_traces([f"[{single}]", f"[{ENSEMBLE}]\n"])] == ["both", "b"]
    assert [r.model for r in parse_traces([f"[{single},{ENSEMBLE}]"])] == ["both", "b"]
    # A file that is only just made has nothing yet.
    assert parse_traces([]) == parse_traces(["", "[]"]) == []


def test_what_is_still_being_written_is_no_trace() -> None:
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        parse_traces(["[" + ENSEMBLE[:-30]])


def test_a_request_that_failed_before_it_computed_is_left_out() -> None:
    failed = {"REQUEST_START": 1, "QUEUE_START": 2, "REQUEST_END": 3}
    assert parse_traces(["[" + entries(4, "m", failed) + "]"]) == []


@given(
    steps=st.lists(
        st.lists(st.integers(0, 1000), min_size=7, max_size=7).map(sorted), min_size=1, max_size=4
    ),
    sent=st.integers(0, 500),
    waited=st.integers(1, 1000),
)
def test_stages_always_add_up_to_the_wait(steps: list[list[int]], sent: int, waited: int) -> None:
    request = RequestTrace(
        model="m", timestamps=WHOLE, steps=tuple(step(*times) for times in steps)
    )
    stages = request.stages(sent, sent + waited)
    assert set(stages) == set(STAGES)
    assert sum(stages.values()) == waited
    assert min(stages.values()) >= 0
    # Nobody's stage is longer than the time in which some step was in it.
    infer = np.zeros(2000, bool)
    for times in steps:
        infer[times[3] : times[4]] = True
    assert stages["compute_infer"] <= infer.sum()


def test_traces_that_triton_writes_late_are_waited_for(tmp_path: Path) -> None:
    def file(number: int) -> Path:
        return tmp_path / f"trace.json.{number}"

    file(0).write_text(f"[{entries(9, 'b', SINGLE)}]")
    (tmp_path / "trace.json").write_text("[")
    tracing = Tracing("127.0.0.1:1", tmp_path / "trace.json")

    def write() -> None:
        with file(1).open("w") as begun:
            begun.write(f"[{ENSEMBLE[:50]}")
            begun.flush()
            time.sleep(0.1)
            begun.write(f"{ENSEMBLE[50:]}]")

    writer = threading.Timer(0.1, write)
    writer.start()
    assert len(tracing.read(at_least=2)) == 2
    writer.join()
    # What was read is there no more, and neither is it missed.
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    file(2).write_text(f"[{entries(9, 'b', SINGLE)}]")
    begun = time.monotonic()
    assert len(tracing.read(at_least=2)) == 1
    assert 0.9 < time.monotonic() - begun < 3


def test_traces_of_before_are_left_alone_unless_a_new_server_wrote_them_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [tmp_path / f"trace.json.{number}" for number in range(2)]
    for file in old:
        file.write_text(f"[{entries(9, 'b', SINGLE)}]")
        os.utime(file, ns=(10**18, 10**18))
    tracing = Tracing("127.0.0.1:1", tmp_path / "trace.json")
    monkeypatch.setattr(Tracing, "_set", lambda *_: None)
    with tracing.on():
        old[0].write_text(f"[{ENSEMBLE}]")
    assert [request.model for request in tracing.read(at_least=1)] == ["both"]
    assert [file.exists() for file in old] == [False, True]
