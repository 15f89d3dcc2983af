"""Whether this machine can run a suite: one line per finding, each with what to do."""

from __future__ import annotations

import importlib
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from hpsbench.commands.check import Check, failed, ok, warning
from hpsbench.config import Suite, environment
from hpsbench.errors import BenchError
from hpsbench.forecast import GIB, forecast, free_memory, needed, places_of, require
from hpsbench.machine import find_gpus
from hpsbench.models.kinds import kind_of
from hpsbench.models.variants import default_variants
from hpsbench.servers.installation import find_libpython, require_numpy_1
from hpsbench.servers.probe import probe_triton

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


def run_checks(suite: Suite) -> list[Check]:
    """Look at everything that a run of `suite` needs; starts a real Triton. Takes some seconds."""
    return [_guarded(name, check, suite) for name, check in CHECKS.items()]


def _guarded(name: str, check: Callable[[Suite], Check], suite: Suite) -> Check:
    try:
        return check(suite)
    except BenchError as error:
        # The log lines that may follow belong into an exception, not into a table.
        finding, to_do = error.problem.splitlines()[0], error.hint
    except Exception as error:
        finding = " ".join(f"{type(error).__name__}: {error}".split())
        to_do = "this check itself failed; please report it with the line above"
    return failed(name, finding, to_do)


def _python(suite: Suite) -> Check:
    version = platform.python_version()
    if suite.servers.triton != "bundled":
        return ok("Python", version)
    return ok("Python", f"{version}, {find_libpython()}")


def _numpy(suite: Suite) -> Check:
    version = metadata.version("numpy")
    if suite.servers.triton == "bundled":
        require_numpy_1(version)
    return ok("NumPy", version)


def _tensorflow(suite: Suite) -> Check:
    ended, answer = _ask_python(_TENSORFLOW)
    if not answer:
        return failed(
            "TensorFlow",
            f"cannot be imported: {ended}",
            "pip install 'hpsbench[cpu]', or 'hpsbench[gpu]' on a GPU machine",
        )
    version, gpus = answer["version"], answer["gpus"]
    if find_gpus() and not gpus:
        return warning(
            "TensorFlow",
            f"{version} sees none of this machine's GPUs",
            "pip uninstall tensorflow-cpu, then pip install 'hpsbench[gpu]'",
        )
    return ok("TensorFlow", f"{version} on {f'{gpus} GPU' if gpus else 'CPU'}")


def _onnx_runtime(suite: Suite) -> Check:
    ended, answer = _ask_python(_ONNX_RUNTIME)
    if not answer:
        return failed(
            "ONNX Runtime",
            f"cannot be imported: {ended}",
            "pip install 'hpsbench[cpu]', or 'hpsbench[gpu]' on a GPU machine; or leave "
            "its variants out (--variants)",
        )
    on_gpu = "CUDAExecutionProvider" in answer["providers"]
    if find_gpus() and not on_gpu:
        return warning(
            "ONNX Runtime",
            f"{answer['version']} cannot use this machine's GPUs",
            "pip uninstall onnxruntime, then pip install 'hpsbench[gpu]'",
        )
    return ok("ONNX Runtime", f"{answer['version']} on {'CUDA' if on_gpu else 'CPU'}")


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
        return failed(
            "compiler",
            f"{cxx} does not run: {error}",
            "apt-get install g++, or name another C++17 compiler in CXX",
        )
    return ok("compiler", output.stdout.splitlines()[0])


def _parameter_server(suite: Suite) -> Check:
    if suite.hps.module != "hpsbench.hps":
        try:
            importlib.import_module(suite.hps.module)
        except ImportError as error:
            return failed(
                "HPS",
                f"{suite.hps.module} cannot be imported: {error}",
                "install it, or leave hps.module at hpsbench.hps",
            )
        return ok("HPS", suite.hps.module)
    ended, answer = _ask_python(_PARAMETER_SERVER)
    if "library" in answer:
        return ok("HPS", f"native library {answer['library']}")
    return failed(
        "HPS",
        " ".join(answer.get("problem", f"no native library: {ended}").split()),
        answer.get("hint", "mend what the lines above say first"),
    )


def _triton(suite: Suite) -> Check:
    which = suite.servers.triton
    with tempfile.TemporaryDirectory(prefix="hpsbench-doctor-") as folder:
        probe = probe_triton(suite.servers, Path(folder))
    if "://" in which:
        return ok("Triton", f"{probe.version} answers at {which}")
    return ok(
        "Triton", f"{probe.version} ({which}) answers right, ready after {probe.ready_s:.1f} s"
    )


def _gpu(suite: Suite) -> Check:
    gpus = find_gpus()
    if not gpus:
        return ok("GPU", "none: measured on the CPU")
    found = [f"{gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB" for gpu in gpus]
    if len(found) > 1:
        found = [f"{number}: {gpu}" for number, gpu in enumerate(found)]
    return ok("GPU", f"{', '.join(found)} (driver {gpus[0].driver})")


def _memory(suite: Suite) -> Check:
    variants, _ = default_variants(suite)
    places, memory = places_of(suite, [variant.name for variant in variants]), free_memory()
    found = forecast(suite, places, memory)
    # What a run itself requires, and leaves out.
    require(suite, found.fits, memory)
    all_of_it = needed(suite, places, on_gpu=memory.gpu is not None)
    finding = _free_and_needed(suite, "", memory.host, all_of_it.host)
    if memory.gpu is not None and all_of_it.gpu is not None:
        finding += "; " + _free_and_needed(suite, " on the GPU", memory.gpu, all_of_it.gpu)
    if found.left_out:
        return warning(
            "memory",
            f"{finding}; {len(found.left_out)} of {len(places)} benchmarks would be left out",
            "choose a smaller preset, or lower --set tables.num_embeddings=ROWS, to measure them",
        )
    if memory.host < MEMORY_MARGIN * all_of_it.host:
        return warning(
            "memory",
            finding,
            "close other programs, or the page cache may be lost while it is measured",
        )
    return ok("memory", finding)


def _free_and_needed(suite: Suite, where: str, free: int, needs: int) -> str:
    return (
        f"{free / GIB:.1f} GiB free{where}, preset {suite.preset} needs about {needs / GIB:.1f} GiB"
    )


def _shared_memory(suite: Suite) -> Check:
    if "://" in suite.servers.triton:
        return ok("/dev/shm", "not needed here")
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
        return ok(name, finding)
    return failed(
        name,
        finding,
        f"{to_do} choose a smaller preset",
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
