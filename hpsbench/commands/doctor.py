"""Whether this machine can run a suite: one line per finding, each with what to do."""

from __future__ import annotations

import enum
import importlib
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hpsbench.config import Suite, environment
from hpsbench.errors import BenchError, ConfigError
from hpsbench.hps.budget import Budget
from hpsbench.machine import find_gpus, free_gpu_memory_bytes, free_memory_bytes
from hpsbench.models.kinds import kind_of
from hpsbench.report.budget import size
from hpsbench.servers.installation import find_libpython, require_numpy_1
from hpsbench.servers.probe import probe_triton

GIB = 2**30
#: A Python-backend model that has imported TensorFlow holds about this much, and so does pytest.
TENSORFLOW_PROCESS_BYTES = 550 * 2**20
#: pytest, native_tf, hps_tf, and the two steps of hps_ensemble.
TENSORFLOW_PROCESSES = 5
#: The parameter server's index takes 21.3 bytes a key, in each of its two processes, and builds it
#: from keys of 8 bytes.
INDEX_BYTES_PER_ROW = 2 * 22 + 8
#: Dense weights, and what a SavedModel holds beside its variables, for all variants together.
OTHER_FILES_BYTES = 200 * 2**20
#: Free memory of less than this much more than the estimate is a warning.
MEMORY_MARGIN = 1.25


_TENSORFLOW = """
import json
import tensorflow as tf
gpus = len(tf.config.list_physical_devices("GPU"))
print(json.dumps({"version": tf.__version__, "gpus": gpus}))
"""

_ONNX_RUNTIME = """
import json
import onnxruntime
providers = onnxruntime.get_available_providers()
print(json.dumps({"version": onnxruntime.__version__, "providers": providers}))
"""

_PARAMETER_SERVER = """
import json
from hpsbench.errors import BenchError
from hpsbench.hps.native.build import op_library
try:
    answer = {"library": str(op_library())}
except BenchError as error:
    answer = {"problem": error.problem, "hint": error.hint}
print(json.dumps(answer))
"""


class Status(enum.Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding; `what_to_do` is empty exactly when all is well."""

    name: str
    status: Status
    finding: str
    what_to_do: str = ""

    def __post_init__(self) -> None:
        if (self.status is Status.OK) != (not self.what_to_do):
            raise ValueError(f"{self.name}: {self.status} with {self.what_to_do!r} to do")

    @property
    def ok(self) -> bool:
        """Whether the suite can run nevertheless."""
        return self.status is not Status.FAILED


def run_checks(suite: Suite) -> list[Check]:
    """Look at everything that a run of `suite` needs; starts a real Triton. Takes some seconds."""
    return [_guarded(name, check, suite) for name, check in CHECKS.items()]


def render(checks: Sequence[Check]) -> str:
    """Return a line for each check: status, name, finding, and what to do."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        to_do = f"; {check.what_to_do}" if check.what_to_do else ""
        status = check.status.value.upper() if not check.ok else check.status.value
        lines.append(f"{status:<8} {check.name:<{width}}  {check.finding}{to_do}")
    return "\n".join(lines)


def memory_checks(budget: Budget) -> list[Check]:
    """Compare what a parameter server's tables will take with what this machine has free now."""
    gpus = free_gpu_memory_bytes()
    return [_host_memory(budget, range(len(gpus))), *_gpu_memory(budget, gpus)]


def _host_memory(budget: Budget, devices: Sequence[int]) -> Check:
    locked = budget.page_locked_bytes(devices)
    for_good = budget.index_bytes + locked
    free = free_memory_bytes()
    parts = f"index {size(budget.index_bytes)}" + (
        f", page-locked {size(locked)}" if locked else ""
    )
    finding = f"{parts}, and {size(budget.mapped_bytes)} of mapped rows; {size(free)} free"
    if for_good > free:
        return Check(
            name="host memory",
            status=Status.FAILED,
            finding=f"does not fit: {finding}",
            what_to_do="take a machine with more memory, or serve fewer rows"
            + (
                "; a lower overflow_margin bounds the volatile tier"
                if budget.volatile_bytes
                else ""
            )
            + ("; a uvm cache with a larger gpucacheper locks less" if locked else ""),
        )
    if for_good + budget.mapped_bytes > free:
        return Check(
            name="host memory",
            status=Status.WARNING,
            finding=f"fits, but not with all rows in the page cache: {finding}",
            what_to_do="expect lookups to wait for the disk, or take a machine with more memory",
        )
    return _ok("host memory", f"fits: {finding}")


def _gpu_memory(budget: Budget, free_bytes: Sequence[int]) -> list[Check]:
    checks = []
    for device, needed in sorted(budget.gpu_bytes().items()):
        name = f"GPU {device} memory"
        if not free_bytes:
            finding = f"{size(needed)} with a GPU; there is none, so the host answers"
            checks.append(_ok(name, finding))
        elif device >= len(free_bytes):
            checks.append(
                Check(
                    name=name,
                    status=Status.FAILED,
                    finding=f"{size(needed)} on a GPU that is not there: this machine has "
                    f"{len(free_bytes)}",
                    what_to_do="name others in deployed_device_list",
                )
            )
        else:
            checks.append(_one_gpu(budget, device, needed, free_bytes[device]))
    return checks


def _one_gpu(budget: Budget, device: int, needed: int, free: int) -> Check:
    name = f"GPU {device} memory"
    finding = f"{size(needed)} of {size(free)} free; a model's other tensors come on top"
    if needed <= free:
        return _ok(name, f"fits: {finding}")
    shares = (percent / 100 for percent in range(99, 0, -1))
    fitting = (s for s in shares if budget.with_share(s).gpu_bytes()[device] <= free)
    share = next(fitting, None)
    return Check(
        name=name,
        status=Status.FAILED,
        finding=f"does not fit: {finding}",
        what_to_do="spread the models over more GPUs, or make static caches dynamic ones"
        if share is None
        else f"set gpucacheper to {share:g} at most",
    )


def require_memory(suite: Suite) -> None:
    """Raise ConfigError where the suite needs more memory than is free."""
    needed, free = needed_memory_bytes(suite), free_memory_bytes()
    if needed > free:
        raise ConfigError(
            f"preset {suite.preset} needs about {needed / GIB:.1f} GiB of memory, "
            f"this machine has {free / GIB:.1f} GiB free",
            hint="choose a smaller preset (--preset laptop, smoke), or lower "
            "--set tables.num_embeddings=ROWS",
        )


def needed_memory_bytes(suite: Suite) -> int:
    """Return the bytes that a run holds at its widest.

    That is the rows twice (as TensorFlow's variable, and mapped from the page cache for the
    parameter server; with a GPU once more, for the variant that keeps its variable on the host),
    the parameter server's index, and the processes that import TensorFlow.
    """
    footprint = kind_of(suite).footprint(suite)
    rows = (3 if find_gpus() else 2) * footprint.row_bytes
    index = INDEX_BYTES_PER_ROW * footprint.num_rows
    return rows + index + TENSORFLOW_PROCESSES * TENSORFLOW_PROCESS_BYTES


def _guarded(name: str, check: Callable[[Suite], Check], suite: Suite) -> Check:
    try:
        return check(suite)
    except BenchError as error:
        # The log lines that may follow belong into an exception, not into a table.
        finding, to_do = error.problem.splitlines()[0], error.hint
    except Exception as error:
        finding = " ".join(f"{type(error).__name__}: {error}".split())
        to_do = "this check itself failed; please report it with the line above"
    return Check(name=name, status=Status.FAILED, finding=finding, what_to_do=to_do)


def _ok(name: str, finding: str) -> Check:
    return Check(name=name, status=Status.OK, finding=finding)


def _python(suite: Suite) -> Check:
    version = platform.python_version()
    if suite.servers.triton != "bundled":
        return _ok("Python", version)
    return _ok("Python", f"{version}, {find_libpython()}")


def _numpy(suite: Suite) -> Check:
    version = metadata.version("numpy")
    if suite.servers.triton == "bundled":
        require_numpy_1(version)
    return _ok("NumPy", version)


def _tensorflow(suite: Suite) -> Check:
    ended, answer = _ask_python(_TENSORFLOW)
    if not answer:
        return Check(
            name="TensorFlow",
            status=Status.FAILED,
            finding=f"cannot be imported: {ended}",
            what_to_do="pip install 'hpsbench[cpu]', or 'hpsbench[gpu]' on a GPU machine",
        )
    version, gpus = answer["version"], answer["gpus"]
    if find_gpus() and not gpus:
        return Check(
            name="TensorFlow",
            status=Status.WARNING,
            finding=f"{version} sees none of this machine's GPUs",
            what_to_do="pip uninstall tensorflow-cpu, then pip install 'hpsbench[gpu]'",
        )
    return _ok("TensorFlow", f"{version} on {f'{gpus} GPU' if gpus else 'CPU'}")


def _onnx_runtime(suite: Suite) -> Check:
    ended, answer = _ask_python(_ONNX_RUNTIME)
    if not answer:
        return Check(
            name="ONNX Runtime",
            status=Status.FAILED,
            finding=f"cannot be imported: {ended}",
            what_to_do="pip install 'hpsbench[cpu]', or 'hpsbench[gpu]' on a GPU machine; or leave "
            "its variants out (--variants)",
        )
    on_gpu = "CUDAExecutionProvider" in answer["providers"]
    if find_gpus() and not on_gpu:
        return Check(
            name="ONNX Runtime",
            status=Status.WARNING,
            finding=f"{answer['version']} cannot use this machine's GPUs",
            what_to_do="pip uninstall onnxruntime, then pip install 'hpsbench[gpu]'",
        )
    return _ok("ONNX Runtime", f"{answer['version']} on {'CUDA' if on_gpu else 'CPU'}")


def _ask_python(code: str) -> tuple[str, dict[str, Any]]:
    """Run code that prints a JSON object; return how it ended, and the object or nothing.

    TensorFlow's remarks on the processor would stand between the findings, and on a processor too
    old for it, it kills the process that imports it.
    """
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    if result.returncode == 0:
        return "", dict(json.loads(result.stdout.splitlines()[-1]))
    if result.returncode < 0:
        return f"killed by {signal.Signals(-result.returncode).name}", {}
    return (result.stderr.strip().splitlines() or ["no reason given"])[-1], {}


def _compiler(suite: Suite) -> Check:
    cxx = environment().cxx
    try:
        output = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return Check(
            name="compiler",
            status=Status.FAILED,
            finding=f"{cxx} does not run: {error}",
            what_to_do="apt-get install g++, or name another C++17 compiler in CXX",
        )
    return _ok("compiler", output.stdout.splitlines()[0])


def _parameter_server(suite: Suite) -> Check:
    if suite.hps.module != "hpsbench.hps":
        try:
            importlib.import_module(suite.hps.module)
        except ImportError as error:
            return Check(
                name="HPS",
                status=Status.FAILED,
                finding=f"{suite.hps.module} cannot be imported: {error}",
                what_to_do="install it, or leave hps.module at hpsbench.hps",
            )
        return _ok("HPS", suite.hps.module)
    ended, answer = _ask_python(_PARAMETER_SERVER)
    if "library" in answer:
        return _ok("HPS", f"native library {answer['library']}")
    return Check(
        name="HPS",
        status=Status.FAILED,
        finding=" ".join(answer.get("problem", f"no native library: {ended}").split()),
        what_to_do=answer.get("hint", "mend what the lines above say first"),
    )


def _triton(suite: Suite) -> Check:
    which = suite.servers.triton
    with tempfile.TemporaryDirectory(prefix="hpsbench-doctor-") as folder:
        probe = probe_triton(suite.servers, Path(folder))
    if "://" in which:
        return _ok("Triton", f"{probe.version} answers at {which}")
    return _ok(
        "Triton", f"{probe.version} ({which}) answers right, ready after {probe.ready_s:.1f} s"
    )


def _gpu(suite: Suite) -> Check:
    gpus = find_gpus()
    if not gpus:
        return _ok("GPU", "none: measured on the CPU")
    finding = ", ".join(f"{g.name}, {g.memory_bytes / GIB:.0f} GiB" for g in gpus)
    row_bytes = kind_of(suite).footprint(suite).row_bytes
    if row_bytes > gpus[0].memory_bytes:
        return Check(
            name="GPU",
            status=Status.WARNING,
            finding=f"{finding}: less than the {row_bytes / GIB:.0f} GiB of rows",
            what_to_do="leave native_tf out, or lower --set tables.num_embeddings=ROWS",
        )
    return _ok("GPU", f"{finding} (driver {gpus[0].driver})")


def _memory(suite: Suite) -> Check:
    require_memory(suite)
    needed, free = needed_memory_bytes(suite), free_memory_bytes()
    finding = f"{free / GIB:.1f} GiB free, preset {suite.preset} needs about {needed / GIB:.1f} GiB"
    if free < MEMORY_MARGIN * needed:
        return Check(
            name="memory",
            status=Status.WARNING,
            finding=finding,
            what_to_do="close other programs, or the page cache may be lost while it is measured",
        )
    return _ok("memory", finding)


def _shared_memory(suite: Suite) -> Check:
    if "://" in suite.servers.triton:
        return _ok("/dev/shm", "not needed here")
    values = max(suite.load.batch_sizes) * kind_of(suite).footprint(suite).vector_values
    # The lookup step of an ensemble gives its vectors out, and the dense step takes them in.
    return _space("/dev/shm", Path("/dev/shm"), 2 * 4 * values, "docker run --shm-size=4g, or")


def _disk(suite: Suite) -> Check:
    folder = environment().cache_dir
    while not folder.exists():
        folder = folder.parent
    # The sparse model's rows and keys, and TensorFlow's variable.
    footprint = kind_of(suite).footprint(suite)
    tables = 2 * footprint.row_bytes + 8 * footprint.num_rows
    return _space("disk", folder, tables + OTHER_FILES_BYTES, "set HPSBENCH_CACHE_DIR, or")


def _space(name: str, folder: Path, needed: int, to_do: str) -> Check:
    free = shutil.disk_usage(folder).free
    finding = f"{free / GIB:.1f} GiB free in {folder}, {needed / GIB:.1f} GiB needed"
    if free >= needed:
        return _ok(name, finding)
    return Check(
        name=name,
        status=Status.FAILED,
        finding=finding,
        what_to_do=f"{to_do} choose a smaller preset",
    )


#: In the order of the report.
CHECKS: dict[str, Callable[[Suite], Check]] = {
    "Python": _python,
    "NumPy": _numpy,
    "TensorFlow": _tensorflow,
    "ONNX Runtime": _onnx_runtime,
    "compiler": _compiler,
    "HPS": _parameter_server,
    "Triton": _triton,
    "GPU": _gpu,
    "memory": _memory,
    "/dev/shm": _shared_memory,
    "disk": _disk,
}
