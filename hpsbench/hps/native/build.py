"""The native libraries of the parameter server, compiled on first use.

There are three: the core, which knows no TensorFlow; the TensorFlow operation, which finds the core
beside it; and the GPU library, which needs nvcc, and without which all else works.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from hpsbench.compiler import Code, Compiler, cxx, shared_library
from hpsbench.config import environment

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
    *_HEADERS, "concat_lookup_kernel.h", "gpu_kernel.h", "lookup_kernel.h", "output_memory.h",
    "register_kernels.h",
)  # fmt: skip
_GPU_SOURCES = (
    "gpu_cache.cu", "gpu_interaction.cu", "gpu_lookup.cu", "gpu_mlp.cu", "gpu_resident.cu",
    "gpu_slabs.cu", "gpu_upload.cu", "thread_pool.cc",
)  # fmt: skip
_GPU_HEADERS = (
    "claimed_ranges.h", "core.h", "gpu_added_rows.h", "gpu_arrays.h", "gpu_attached.h",
    "gpu_cache.h", "gpu_inserter.h", "gpu_interaction.h", "gpu_lanes.h", "gpu_memory.h",
    "gpu_mlp.h", "gpu_order.h", "gpu_places.cuh", "gpu_resident_kernels.cuh", "gpu_rewriter.h",
    "gpu_rows.cuh", "gpu_slab_kernels.cuh", "gpu_stages.h", "gpu_table.h", "gpu_workspace.h",
    "thread_pool.h",
)  # fmt: skip
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden")
# The CUDA runtime is linked in, so that the library also loads where there is no CUDA.
_GPU_FLAGS = (
    "--threads", "0",
    "-std=c++17", "-O3", "-shared", "-cudart", "static",
    "-Xcompiler", "-fPIC,-pthread,-fvisibility=hidden",
)  # fmt: skip


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
    compiler = Compiler(
        program=nvcc,
        hint="install a CUDA toolkit that fits the GPU, or name another nvcc in NVCC",
    )
    return _library("gpu", "libhps_gpu.so", _GPU_SOURCES, _GPU_HEADERS, flags, compiler=compiler)


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
    compiler: Compiler | None = None,
) -> Path:
    code = Code(folder=Path(__file__).parent, sources=sources, headers=headers)
    return shared_library(kind, file_name, code, flags, compiler or cxx(), depends_on=depends_on)
