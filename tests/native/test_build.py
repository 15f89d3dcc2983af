"""The native libraries are compiled once, and a compiler that is missing or fails is explained."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpsbench import compiler as compilers
from hpsbench.config import environment
from hpsbench.errors import NativeBuildError
from hpsbench.hps.native import build

COMPILER = """#!/bin/sh
echo run >> "$(dirname "$0")/runs"
[ "$1" = --version ] && {{ echo "fake {version}"; exit 0; }}
{action}
"""
COPIES = 'while [ "$1" != -o ]; do shift; done; sleep 0.2; echo library > "$2"'


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """Return a function that puts a compiler in place; the cache folder is empty."""

    def install(action: str = COPIES, version: str = "1.0") -> Path:
        path = tmp_path / "fake-g++"
        path.write_text(COMPILER.format(action=action, version=version))
        path.chmod(0o755)
        compilers._version.cache_clear()
        return path

    monkeypatch.setenv("HPSBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "fake-g++"))
    yield install
    compilers._version.cache_clear()


def runs(compiler: Path) -> int:
    return len((compiler.parent / "runs").read_text().splitlines())


def test_a_library_is_compiled_once_however_many_need_it(fake_compiler):
    compiler = fake_compiler()
    with ThreadPoolExecutor(4) as pool:
        (path,) = set(pool.map(lambda _: build.core_library(), range(4)))
    assert path.read_text() == "library\n"
    ran = runs(compiler)
    assert build.core_library() == path
    assert runs(compiler) == ran
    assert {file.name for file in path.parent.iterdir()} == {"libhps_core.so"}


def test_another_compiler_or_other_flags_make_another_library(fake_compiler):
    fake_compiler()
    first = build.core_library()
    flagged = build.core_library(["-fsanitize=address"])
    fake_compiler(version="2.0")
    assert len({first, flagged, build.core_library()}) == 3


def test_a_compiler_that_fails_shows_its_last_lines(fake_compiler):
    compiler = fake_compiler("for i in $(seq 30); do echo line $i >&2; done; exit 1")
    with pytest.raises(NativeBuildError) as caught:
        build.core_library()
    lines = "\n".join(f"    line {i}" for i in range(19, 31))
    assert str(caught.value) == (
        f"{compiler} could not compile libhps_core.so; its last lines:\n{lines}\n"
        "  hint: install or update the compiler (apt-get install g++), or name another in CXX"
    )
    fake_compiler()
    assert build.core_library().exists()


def test_a_missing_compiler_names_the_package(fake_compiler):
    compilers._version.cache_clear()
    with pytest.raises(NativeBuildError) as caught:
        build.core_library()
    assert "the native library needs a C++ compiler, and" in str(caught.value)
    assert "hint: apt-get install g++, or name another compiler in CXX" in str(caught.value)


def test_a_cache_folder_that_cannot_be_written_is_named(fake_compiler, tmp_path, monkeypatch):
    fake_compiler()
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPSBENCH_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(NativeBuildError) as caught:
        build.core_library()
    assert f"cannot be kept in {tmp_path / 'file'}/native/core-" in caught.value.problem
    assert caught.value.problem.endswith("Not a directory")
    assert caught.value.hint == "set HPSBENCH_CACHE_DIR to a folder that you can write"


def test_a_compilation_that_is_interrupted_leaves_no_file(fake_compiler, monkeypatch):
    fake_compiler()
    library = build.core_library()
    library.unlink()
    run = subprocess.run

    def interrupted(command, **options):
        run(command, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(compilers.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.core_library()
    assert list(library.parent.iterdir()) == []


def test_the_core_needs_no_tensorflow():
    core = build.core_library()
    linked = subprocess.run(["ldd", core], capture_output=True, text=True, check=True).stdout
    assert "tensorflow" not in linked
    assert ctypes.CDLL(str(core)).hps_registry_generation() >= 0


def _compiler_file(name: str) -> str:
    command = [environment().cxx, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


SUPPRESSED = Path(__file__).with_name("thread_sanitizer.txt")


@pytest.mark.parametrize(
    ("sanitizer", "runtime", "options"),
    [
        # Python itself leaks.
        ("address", "libasan.so", {"ASAN_OPTIONS": "detect_leaks=0"}),
        ("thread", "libtsan.so", {"TSAN_OPTIONS": f"halt_on_error=1 suppressions={SUPPRESSED}"}),
    ],
    ids=["address", "thread"],
)
def test_the_core_is_clean_under_a_sanitizer(tmp_path, sanitizer, runtime, options):
    library = build.core_library(["-O1", "-g", f"-fsanitize={sanitizer}"])
    # Preloaded, since Python is not linked with them; exceptions need the second one.
    preloaded = [_compiler_file(runtime), _compiler_file("libstdc++.so")]
    if not all(Path(path).is_absolute() for path in preloaded):
        pytest.skip(f"this compiler has no {runtime}; g++ of Debian, as CI has, does")
    # The thread sanitizer knows where memory may lie, which some kernels choose too freely; some
    # containers do not let them be told.
    fixed = ["setarch", "--addr-no-randomize"]
    if subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode != 0:
        fixed = []
    result = subprocess.run(
        [*fixed, sys.executable, Path(__file__).with_name("exercise_core.py"), library, tmp_path],
        env={**os.environ, "LD_PRELOAD": " ".join(preloaded), **options},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "done\n"


def test_without_nvcc_there_is_no_gpu_library(fake_compiler, monkeypatch):
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("hpsbench.config._USUAL_NVCC", "/no/such/nvcc")
    assert build.gpu_library(["90"]) is None


def test_the_gpu_library_is_compiled_for_the_gpus_that_are_there(fake_compiler, monkeypatch):
    compiler = fake_compiler('echo "$@" >> "$(dirname "$0")/commands"; ' + COPIES)
    monkeypatch.setenv("NVCC", str(compiler))
    monkeypatch.delenv("CUDAARCHS", raising=False)
    first = build.gpu_library(["80", "90"])
    assert first.name == "libhps_gpu.so"
    command = (compiler.parent / "commands").read_text().splitlines()[-1]
    for architecture in ("80", "90"):
        assert f"arch=compute_{architecture},code=sm_{architecture}" in command
    assert build.gpu_library(["80", "90"]) == first
    monkeypatch.setenv("CUDAARCHS", "90")
    assert build.gpu_library(["80", "90"]) != first
    assert "sm_80" not in (compiler.parent / "commands").read_text().splitlines()[-1]


def test_an_nvcc_that_fails_is_explained(fake_compiler, monkeypatch):
    fake_compiler()
    build.core_library()
    broken = fake_compiler("echo no such architecture >&2; exit 1")
    monkeypatch.setenv("NVCC", str(broken))
    monkeypatch.setattr(build, "core_library", lambda: Path("/core/libhps_core.so"))
    with pytest.raises(NativeBuildError, match="no such architecture") as caught:
        build.gpu_library(["90"])
    assert "NVCC" in caught.value.hint


def test_a_library_depends_on_every_source():
    folder = Path(build.__file__).parent
    native = {p.name for p in folder.iterdir() if p.suffix in (".h", ".cc", ".cu", ".cuh")}
    assert native == {
        *build._CORE_SOURCES, *build._OP_SOURCES, *build._OP_HEADERS,
        *build._GPU_SOURCES, *build._GPU_HEADERS,
    }  # fmt: skip
