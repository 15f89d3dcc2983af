"""The native libraries are compiled once, and a compiler that is missing or fails is explained."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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
        build._compiler_version.cache_clear()
        return path

    monkeypatch.setenv("HPSBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "fake-g++"))
    yield install
    build._compiler_version.cache_clear()


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
    build._compiler_version.cache_clear()
    with pytest.raises(NativeBuildError) as caught:
        build.core_library()
    assert "the native library needs a C++ compiler, and" in str(caught.value)
    assert "hint: apt-get install g++, or name another compiler in CXX" in str(caught.value)


def test_the_core_needs_no_tensorflow():
    core = build.core_library()
    linked = subprocess.run(["ldd", core], capture_output=True, text=True, check=True).stdout
    assert "tensorflow" not in linked
    assert ctypes.CDLL(str(core)).hps_registry_generation() >= 0


def _compiler_file(name: str) -> str:
    command = [environment().cxx, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_core_is_clean_under_the_address_sanitizer(tmp_path):
    library = build.core_library(["-O1", "-fsanitize=address"])
    # Preloaded, since Python is not linked with them; exceptions need the second one.
    preloaded = [_compiler_file("libasan.so"), _compiler_file("libstdc++.so")]
    if not all(Path(path).is_absolute() for path in preloaded):
        pytest.skip("this compiler has no libasan.so")
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("exercise_core.py"), library, tmp_path],
        env={
            **os.environ,
            "LD_PRELOAD": " ".join(preloaded),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks
        },
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "done\n"
