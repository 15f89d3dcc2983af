"""NVIDIA's perf_analyzer, to hold our client against: found, or fetched into the cache.

The program is inside the Linux wheel `tritonclient==2.50.0` (later wheels carry none). It asks
for two libraries that the bundled Triton brings under other names; links make them known.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from filelock import FileLock

from hpsbench.errors import BenchError
from hpsbench.load.client import Tensor
from hpsbench.servers.endpoint import Endpoint

WHEEL = "tritonclient==2.50.0"
_PROGRAM_IN_WHEEL = "tritonclient-2.50.0.data/data/bin/perf_analyzer"
_PROGRAM_SHA256 = "ae8cbf583a990235c617a50b380a7cd41e790ba8d414f382a8349e2ffbaae7fa"
#: What the program asks for, and the pattern of the file beside the bundled Triton that is it.
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12.*"}
_FETCH_TIMEOUT_S = 300
_INSTALL_HINT = (
    f"put perf_analyzer on PATH, or let pip reach {WHEEL}; its libraries come with "
    "nvidia-pytriton==0.7.0, or with `apt-get install libb64-0d` and a CUDA 12 runtime"
)


class PerfAnalyzerError(BenchError):
    """perf_analyzer could not be had, or could not measure."""


@dataclass(frozen=True, kw_only=True)
class PerfAnalyzerReport:
    """Means over its windows, whole microseconds given as nanoseconds; p50 and p99 of all.

    The server's stages are per request, `network_ns` is what the client waited beyond them.
    """

    mean_ns: int
    p50_ns: int
    p99_ns: int
    send_ns: int
    network_ns: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    requests_per_second: float


@dataclass(frozen=True, kw_only=True)
class PerfAnalyzer:
    """A program that runs, with the folder of libraries that it needs."""

    program: Path
    libraries: Path | None = None

    def version(self) -> str:
        """Return what it calls itself; raises PerfAnalyzerError where it does not start."""
        return self._run(["--version"], timeout_s=30).strip()

    def measure(
        self,
        endpoint: Endpoint,
        inputs: Mapping[str, Tensor],
        *,
        protocol: str = "http",
        window_s: float = 0.5,
    ) -> PerfAnalyzerReport:
        """Send `inputs` over one connection for three windows, and return what it reports.

        Raises PerfAnalyzerError with its words where it fails.
        """
        with tempfile.TemporaryDirectory(prefix="perf_analyzer-") as folder:
            data, report = Path(folder, "inputs.json"), Path(folder, "report.csv")
            data.write_text(json.dumps(input_data(inputs)))
            options = ["-m", endpoint.model, "-i", protocol]
            options += ["-u", (endpoint.grpc if protocol == "grpc" else endpoint.http) or ""]
            options += ["--input-data", str(data), "-f", str(report), "--verbose-csv"]
            for name, tensor in inputs.items():
                options += ["--shape", f"{name}:{','.join(map(str, tensor.shape))}"]
            # Three windows are the fewest it accepts; every spread between them is stable enough.
            options += ["-p", str(int(window_s * 1000)), "-r", "3", "-s", "999"]
            output = self._run(options, timeout_s=60 + 10 * window_s)
            if not report.exists():
                raise PerfAnalyzerError(
                    f"perf_analyzer wrote no report on {endpoint.model}: {_last_line(output)}",
                    hint="is the model ready, and do the inputs have its names and shapes?",
                )
            return parse_report(report.read_text())

    def _run(self, options: list[str], *, timeout_s: float) -> str:
        needs = None if self.libraries is None else {"LD_LIBRARY_PATH": str(self.libraries)}
        try:
            done = subprocess.run(
                [self.program, *options],
                env=needs,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PerfAnalyzerError(
                f"{self.program} did not run: {error}", hint=_INSTALL_HINT
            ) from error
        if done.returncode == 127:
            raise PerfAnalyzerError(
                f"{self.program} did not start: {_last_line(done.stdout)}", hint=_INSTALL_HINT
            )
        if done.returncode != 0 and "--version" not in options:
            raise PerfAnalyzerError(
                f"perf_analyzer failed with status {done.returncode}: {_last_line(done.stdout)}",
                hint="is the model ready, and do the inputs have its names and shapes?",
            )
        return done.stdout


def find_or_fetch_perf_analyzer(cache_dir: Path) -> PerfAnalyzer:
    """Return the perf_analyzer on PATH, else the cached one, fetched by pip where there is none.

    Needs no root. Raises PerfAnalyzerError, naming what is missing, where it cannot be had.
    """
    on_path = shutil.which("perf_analyzer")
    if on_path is not None:
        found = PerfAnalyzer(program=Path(on_path))
        found.version()
        return found
    folder = cache_dir / "perf_analyzer" / WHEEL.partition("==")[2]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        program = folder / "perf_analyzer"
        if not program.exists():
            _fetch_program(program)
        analyzer = PerfAnalyzer(program=program, libraries=_linked_libraries(folder / "lib"))
    analyzer.version()
    return analyzer


def input_data(inputs: Mapping[str, Tensor]) -> dict[str, object]:
    """Return what `--input-data` reads: the tensors of one request, as base64 of their bytes."""
    contents = {
        name: {"b64": base64.b64encode(np.ascontiguousarray(tensor).tobytes()).decode("ascii")}
        for name, tensor in inputs.items()
    }
    return {"data": [contents]}


def parse_report(text: str) -> PerfAnalyzerReport:
    """Return the first line of a `-f FILE --verbose-csv` report; raises PerfAnalyzerError."""
    try:
        row = next(iter(csv.DictReader(text.splitlines())))
        return PerfAnalyzerReport(
            mean_ns=_microseconds(row, "Avg latency"),
            p50_ns=_microseconds(row, "p50 latency"),
            p99_ns=_microseconds(row, "p99 latency"),
            send_ns=_microseconds(row, "Client Send"),
            network_ns=_microseconds(row, "Network+Server Send/Recv"),
            queue_ns=_microseconds(row, "Server Queue"),
            compute_input_ns=_microseconds(row, "Server Compute Input"),
            compute_infer_ns=_microseconds(row, "Server Compute Infer"),
            compute_output_ns=_microseconds(row, "Server Compute Output"),
            requests_per_second=float(row["Inferences/Second"]),
        )
    except (StopIteration, KeyError, TypeError, ValueError) as error:
        raise PerfAnalyzerError(
            f"perf_analyzer's report cannot be read ({error!r}): {text[:200]!r}",
            hint=f"its format is that of {WHEEL}; remove another perf_analyzer from PATH",
        ) from error


def _microseconds(row: Mapping[str, str], column: str) -> int:
    return round(float(row[column]) * 1000)


def _fetch_program(program: Path) -> None:
    with tempfile.TemporaryDirectory(dir=program.parent, prefix="fetch-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:"]
        command += ["--platform", "manylinux1_x86_64", "--dest", folder, WHEEL]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise PerfAnalyzerError(
                f"pip did not fetch {WHEEL} within {_FETCH_TIMEOUT_S} s", hint=_INSTALL_HINT
            ) from error
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise PerfAnalyzerError(
                f"pip could not fetch {WHEEL}: {_last_line(done.stderr)}", hint=_INSTALL_HINT
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(_PROGRAM_IN_WHEEL)
        if hashlib.sha256(content).hexdigest() != _PROGRAM_SHA256:
            raise PerfAnalyzerError(
                f"the perf_analyzer in {wheels[0].name} is not the one known to work",
                hint="fetch it from PyPI, not from a mirror that rebuilds wheels",
            )
        fetched = Path(folder, "perf_analyzer")
        fetched.write_bytes(content)
        fetched.chmod(0o755)
        fetched.replace(program)


def _linked_libraries(folder: Path) -> Path:
    """Return `folder`, with a link for each library that the bundled Triton has."""
    folder.mkdir(exist_ok=True)
    spec = find_spec("pytriton")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent.parent / "nvidia_pytriton.libs"
        for name, pattern in _LIBRARIES.items():
            for library in sorted(bundled.glob(pattern))[:1]:
                # The cache may outlive the environment that it was first linked to.
                link = folder / name
                link.unlink(missing_ok=True)
                link.symlink_to(library)
    return folder


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
