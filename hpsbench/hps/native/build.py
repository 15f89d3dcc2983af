"""Compiles the native libraries on first use, and keeps them in the cache folder.

There are three: the core, which knows no TensorFlow; the TensorFlow operation, which finds the core
beside it; and the GPU library, which needs nvcc, and without which all else works. A library's
folder is named after all that its content depends on, so it is never outdated; processes that need
it at the same time wait for one build.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from hpsbench.config import environment
from hpsbench.errors import NativeBuildError

_LOG = logging.getLogger("hpsbench.hps")
_SOURCES = Path(__file__).parent
_OP_SOURCES = ("op.cc", "op_concat.cc", "op_concat_gpu.cc", "op_gpu.cc")
_CORE_SOURCES = (
    "core.cc", "index.cc", "lookup.cc", "table.cc", "thread_pool.cc", "tiers.cc",
    "volatile_table.cc",
)  # fmt: skip
_HEADERS = (
    "claimed_ranges.h", "core.h", "index.h", "table.h", "thread_pool.h", "tiers.h",
    "volatile_table.h",
)  # fmt: skip
_OP_HEADERS = (
    *_HEADERS, "concat_lookup_kernel.h", "lookup_kernel.h", "output_memory.h", "register_kernels.h",
)  # fmt: skip
_GPU_SOURCES = (
    "gpu_cache.cu", "gpu_columns.cu", "gpu_interaction.cu", "gpu_lookup.cu", "gpu_resident.cu",
    "gpu_slabs.cu", "gpu_upload.cu",
)  # fmt: skip
_GPU_HEADERS = (
    "core.h", "gpu_added_rows.h", "gpu_arrays.h", "gpu_attached.h", "gpu_cache.h",
    "gpu_columns.h", "gpu_inserter.h", "gpu_interaction.h", "gpu_memory.h", "gpu_order.h",
    "gpu_resident_kernels.cuh", "gpu_rewriter.h", "gpu_rows.cuh", "gpu_slab_kernels.cuh",
    "gpu_stages.h", "gpu_table.h", "gpu_workspace.h",
)  # fmt: skip
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden")
# The CUDA runtime is linked in, so that the library also loads where there is no CUDA.
_GPU_FLAGS = (
    "--threads", "0",
    "-std=c++17", "-O3", "-shared", "-cudart", "static",
    "-Xcompiler", "-fPIC,-pthread,-fvisibility=hidden",
)  # fmt: skip
_SHOWN_LINES = 12
_CXX_HINT = "install or update the compiler (apt-get install g++), or name another in CXX"
_NVCC_HINT = "install a CUDA toolkit that fits the GPU, or name another nvcc in NVCC"


def core_library(extra_flags: Sequence[str] = ()) -> Path:
    """Return the path of the core, compiled if need be; `extra_flags` are for sanitizers.

    Raises NativeBuildError where there is no compiler or it fails.
    """
    flags = (*_FLAGS, *_architecture_flags(), *extra_flags)
    return _library("core", "libhps_core.so", _CORE_SOURCES, _HEADERS, flags)


def op_library() -> Path:
    """Return the path of the TensorFlow operation, compiled if need be. Imports TensorFlow.

    Raises NativeBuildError where there is no compiler or it fails.
    """
    import tensorflow as tf

    core = core_library()
    flags = (
        *_FLAGS,
        *_architecture_flags(),
        *(flag for flag in tf.sysconfig.get_compile_flags() if not flag.startswith("--std")),
        *tf.sysconfig.get_link_flags(),
        f"-L{core.parent}",
        f"-l:{core.name}",
        f"-Wl,-rpath,$ORIGIN/../{core.parent.name}",
    )
    return _library(
        "op", "libhps_op.so", _OP_SOURCES, _OP_HEADERS, flags,
        depends_on=tf.__version__,
    )  # fmt: skip


def gpu_library(architectures: Sequence[str]) -> Path | None:
    """Return the path of the GPU library, compiled if need be; None where there is no nvcc.

    `architectures` are compute capabilities, such as 90; `CUDAARCHS` overrides them. Raises
    NativeBuildError where nvcc fails.
    """
    nvcc = environment().nvcc
    if nvcc is None:
        return None
    core = core_library()
    flags = (
        *_GPU_FLAGS,
        *(
            f"-gencode=arch=compute_{a},code=sm_{a}"
            for a in environment().cuda_architectures or architectures
        ),
        f"-L{core.parent}",
        f"-l:{core.name}",
        "-Xlinker",
        f"-rpath=$ORIGIN/../{core.parent.name}",
    )
    return _library(
        "gpu", "libhps_gpu.so", _GPU_SOURCES, _GPU_HEADERS, flags, compiler=nvcc, hint=_NVCC_HINT
    )


def _architecture_flags() -> tuple[str, ...]:
    # Not -march=native: a cache folder may be shared between machines.
    return ("-mavx2", "-mf16c") if platform.machine() == "x86_64" else ()


def _library(
    kind: str,
    file_name: str,
    sources: Sequence[str],
    headers: Sequence[str],
    flags: Sequence[str],
    *,
    depends_on: str = "",
    compiler: str | None = None,
    hint: str = _CXX_HINT,
) -> Path:
    compiler = compiler or environment().cxx
    digest = hashlib.sha256()
    for part in (_compiler_version(compiler), depends_on, *flags):
        digest.update(part.encode() + b"\0")
    for name in (*headers, *sources):
        digest.update((_SOURCES / name).read_bytes())
    folder = environment().cache_dir / "native" / f"{kind}-{digest.hexdigest()[:20]}"
    library = folder / file_name
    if library.exists():
        return library
    from filelock import FileLock  # not before: it takes longer than loading small tables

    # Libraries come after the sources that need them.
    command = [compiler, *(str(_SOURCES / name) for name in sources), *flags]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not library.exists():
                _compile(command, library, hint)
    except OSError as error:
        raise NativeBuildError(
            f"the native library cannot be kept in {folder}: {error.strerror}",
            hint="set HPSBENCH_CACHE_DIR to a folder that you can write",
        ) from error
    return library


def _compile(command: Sequence[str], library: Path, hint: str) -> None:
    _LOG.info("compiling %s; this happens once", library)
    started = time.monotonic()
    unfinished = library.with_name(f"{library.name}.{os.getpid()}")
    try:
        result = subprocess.run(
            [*command, "-o", str(unfinished)], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            last = "\n    ".join(result.stderr.strip().splitlines()[-_SHOWN_LINES:])
            raise NativeBuildError(
                f"{command[0]} could not compile {library.name}; its last lines:\n    {last}",
                hint=hint,
            )
        unfinished.replace(library)
    finally:
        unfinished.unlink(missing_ok=True)
    _LOG.info("compiled %s in %.1f s", library, time.monotonic() - started)


@functools.cache
def _compiler_version(compiler: str) -> str:
    try:
        result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NativeBuildError(
            f"the native library needs a C++ compiler, and {compiler!r} does not run: {error}",
            hint="apt-get install g++, or name another compiler in CXX",
        ) from error
    return result.stdout or compiler
