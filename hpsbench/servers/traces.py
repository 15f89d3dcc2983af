"""Triton's trace of single requests: which stage each nanosecond of a client's wait went to.

Timestamps are of CLOCK_MONOTONIC, as Python's `perf_counter_ns` on the same Linux machine.
"""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpsbench.errors import ServerError
from hpsbench.servers import http

#: Where a request's time goes, in Triton's terms; `overhead` is what no model accounts for: the
#: client, the network, HTTP, and scheduling between an ensemble's steps.
STAGES = ("queue", "compute_input", "compute_infer", "compute_output", "overhead")

_SETTINGS = "/v2/trace/setting"
_TIMEOUT_S = 10.0
#: Triton writes a trace once the request's last trace of it is gone, some time after the answer.
_SETTLE_S, _SETTLE_STEP_S = 1.0, 0.01

# Each stage of one model: the timestamps that it lies between. What overlaps counts for the first:
# a request that waits for one step while another's answer is still put away, waits.
_SPANS = (
    ("compute_infer", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START"),
    ("compute_input", "COMPUTE_START", "COMPUTE_INPUT_END"),
    ("queue", "QUEUE_START", "COMPUTE_START"),
    ("compute_output", "COMPUTE_OUTPUT_START", "COMPUTE_END"),
)


@dataclass(frozen=True, kw_only=True)
class RequestTrace:
    """One request of a client: its model, and nanoseconds by Triton's names of timestamps.

    `steps` are the models that computed: this one, or those of an ensemble, in any order.
    """

    model: str
    timestamps: Mapping[str, int]
    steps: tuple[Mapping[str, int], ...]

    @property
    def start_ns(self) -> int:
        """When Triton began with the request."""
        return self.timestamps["REQUEST_START"]

    def stages(self, sent_ns: int, received_ns: int) -> dict[str, int]:
        """Return how many nanoseconds of a client's wait went to each of `STAGES`; they add up.

        Every instant counts once, whatever runs beside each other, and nothing after the answer.
        """
        # The Python backend puts an answer away after it has been sent.
        end_ns = min(received_ns, self.timestamps.get("INFER_RESPONSE_COMPLETE", received_ns))
        spans = [
            (rank, stage, max(sent_ns, step[begin]), min(end_ns, step[end]))
            for step in self.steps
            for rank, (stage, begin, end) in enumerate(_SPANS)
        ]
        found = dict.fromkeys(STAGES, 0)
        edges = sorted({edge for _, _, begin, end in spans if begin < end for edge in (begin, end)})
        for left, right in pairwise(edges):
            open_now = [(rank, s) for rank, s, begin, end in spans if begin <= left < end]
            if open_now:
                found[min(open_now)[1]] += right - left
        found["overhead"] = received_ns - sent_ns - sum(found.values())
        return found


def parse_traces(texts: Iterable[str]) -> list[RequestTrace]:
    """Return the clients' requests in trace files of one server, by their start.

    Requests without all their timestamps, such as failed ones, are left out. Raises ValueError for
    what is no trace, or ends within one.
    """
    entries = [entry for text in texts if text.strip() for entry in json.loads(text)]
    traces: dict[int, _Entry] = {}
    for entry in entries:
        trace = traces.setdefault(entry["id"], _Entry())
        trace.model = entry.get("model_name", trace.model)
        trace.parent = entry.get("parent_id", trace.parent)
        for stamp in entry.get("timestamps", ()):
            trace.timestamps[stamp["name"]] = int(stamp["ns"])
    steps: dict[int, list[_Entry]] = {}
    for number, trace in traces.items():
        root = number
        while (parent := traces[root].parent) in traces and parent is not None:
            root = parent
        if trace.computed:
            steps.setdefault(root, []).append(trace)
    found = [
        RequestTrace(
            model=trace.model,
            timestamps=trace.timestamps,
            steps=tuple(step.timestamps for step in steps[number]),
        )
        for number, trace in traces.items()
        if trace.parent is None and number in steps and "REQUEST_START" in trace.timestamps
    ]
    return sorted(found, key=lambda request: request.start_ns)


@dataclass
class _Entry:
    model: str = ""
    parent: int | None = None
    timestamps: dict[str, int] = field(default_factory=dict)

    @property
    def computed(self) -> bool:
        return all(name in self.timestamps for _, *names in _SPANS for name in names)


class Tracing:
    """A Triton that can write traces beside `file`, where this process can read them.

    Each goes to a file of its own: of one file of many, Triton keeps the last 8 KB to itself until
    it ends.
    """

    def __init__(self, address: str, file: Path) -> None:
        self._address, self._file = address, file
        self._before: dict[Path, int] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Trace every request while the context lasts; `read` gives them afterwards.

        Raises ServerError where Triton refuses.
        """
        self._before = self._files()
        self._set(
            {
                "trace_level": ["TIMESTAMPS"],
                "trace_rate": "1",
                "trace_count": "-1",
                "log_frequency": "1",
            }
        )
        try:
            yield
        finally:
            self._set({"trace_level": ["OFF"], "log_frequency": "0"})

    def read(
        self, *, at_least: int, sleep: Callable[[float], None] = time.sleep
    ) -> list[RequestTrace]:
        """Return the requests of the last traced time, after a while even if they are fewer.

        Their files are removed.
        """
        deadline_s = time.monotonic() + _SETTLE_S
        while True:
            files = [file for file, at in self._files().items() if self._before.get(file) != at]
            try:
                found = parse_traces([file.read_text() for file in files])
            except ValueError:
                # It is still being written.
                found = []
            if len(found) >= at_least or time.monotonic() > deadline_s:
                for file in files:
                    with suppress(OSError):
                        file.unlink()
                return found
            sleep(_SETTLE_STEP_S)

    def _files(self) -> dict[Path, int]:
        """Return when each file of a trace was written: a new server's numbers begin anew."""
        found = {}
        for file in self._file.parent.glob(f"{glob.escape(self._file.name)}.*"):
            with suppress(FileNotFoundError):
                found[file] = file.stat().st_mtime_ns
        return found

    def _set(self, settings: Mapping[str, Any]) -> None:
        body = json.dumps(settings).encode()
        try:
            status, answer = http.post(self._address, _SETTINGS, body, timeout_s=_TIMEOUT_S)
        except http.CONNECTION_ERRORS as error:
            raise http.unreachable(self._address, error) from error
        if status != 200:
            raise ServerError(
                f"triton at {self._address} does not trace: {http.reason(answer)}",
                hint="start it with --trace-config=triton,file=FILE, or set load.traced_s=0",
            )


def find_tracing(http_address: str) -> Tracing | None:
    """Return how to trace the Triton at `host:port`, None where its file cannot be read here.

    None too where somebody traces it already. Raises ServerError without an answer.
    """
    status, body = http.ask(http_address, _SETTINGS)
    if status != 200:
        return None
    settings = json.loads(body)
    file = Path(settings.get("trace_file") or "")
    if settings.get("trace_level") != ["OFF"] or settings.get("trace_mode") != "triton":
        return None
    return Tracing(http_address, file) if file.is_absolute() and file.parent.is_dir() else None
