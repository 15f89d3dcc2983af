"""Triton is found, or the error names what is missing and what to install."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from hpsbench.errors import ServerError
from hpsbench.servers import installation
from hpsbench.servers.installation import (
    find_libpython,
    find_stub,
    find_triton,
    require_numpy_1,
)
from hpsbench.servers.process import SCRATCH

IN_PROCESS_FILES = {
    "backends/hpsbench/libtriton_hpsbench.so", "backends/hpsbench/libpython.so",
}  # fmt: skip
LIBPYTHON = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"


def test_the_bundled_triton_is_found_with_the_stub_of_this_python() -> None:
    found = find_triton("bundled")
    assert found.binary.name == "tritonserver"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = Path(found.links["backends/python/triton_python_backend_stub"])
    assert stub.parent.name == version
    assert {"libtriton_python.so", "triton_python_backend_utils.py"} <= {
        Path(name).name for name in found.links
    }
    assert found.arguments == [f"--backend-directory={SCRATCH}/backends"]
    assert (Path(found.prepend["LD_LIBRARY_PATH"][1]) / LIBPYTHON).is_file()
    assert found.prepend["PATH"] == [str(Path(sys.executable).parent)]


def test_the_backend_in_process_is_added_where_a_model_asks_for_it() -> None:
    plain, found = find_triton("bundled"), find_triton("bundled", in_process=True)
    added = {name: Path(target) for name, target in found.links.items() if name not in plain.links}
    assert set(added) == IN_PROCESS_FILES
    assert all(target.is_file() for target in added.values())


def test_the_backend_in_process_comes_from_the_environment_whose_models_it_runs(
    tmp_path: Path,
) -> None:
    ours = find_triton("bundled", in_process=True)
    found = find_triton("bundled", Path(sys.executable), in_process=True)
    assert found.links == ours.links
    other = tmp_path / "bin" / "python"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\necho \"No module named 'hpsbench'\" >&2; exit 1\n")
    other.chmod(0o755)
    with pytest.raises(ServerError, match=f"{other} has no backend .*: No module named 'hpsbench'"):
        find_triton("bundled", other, in_process=True)


def test_pytriton_is_not_imported_to_find_its_triton() -> None:
    find_triton("bundled")
    assert "pytriton" not in sys.modules


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match="nvidia-pytriton is missing") as caught:
        find_triton("bundled")
    assert "pip install 'nvidia-pytriton" in caught.value.hint


def test_a_python_without_a_stub_is_told_the_versions_that_have_one(tmp_path: Path) -> None:
    for version in ("3.9", "3.12"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "triton_python_backend_stub").touch()
    assert find_stub(tmp_path, (3, 12)).parent.name == "3.12"
    with pytest.raises(ServerError, match=r"runs Python 3\.9, 3\.12, not 3\.14"):
        find_stub(tmp_path, (3, 14))


@pytest.mark.parametrize("place", ["LIBDIR", "LIBDIR/MULTIARCH", "base_prefix/lib"])
def test_libpython_is_found_where_pythons_have_it(tmp_path: Path, place: str) -> None:
    config = {"LIBDIR": str(tmp_path / "libdir"), "MULTIARCH": "x86_64-linux-gnu"}
    folder = {
        "LIBDIR": tmp_path / "libdir",
        "LIBDIR/MULTIARCH": tmp_path / "libdir" / "x86_64-linux-gnu",
        "base_prefix/lib": tmp_path / "lib",
    }[place]
    folder.mkdir(parents=True)
    (folder / LIBPYTHON).touch()
    assert find_libpython(config, str(tmp_path)) == folder / LIBPYTHON


def test_a_static_python_is_an_error_with_the_package_to_install(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=f"no shared {LIBPYTHON}") as caught:
        find_libpython({"LIBDIR": str(tmp_path), "MULTIARCH": None}, str(tmp_path))
    assert "apt-get install libpython3" in caught.value.hint
    assert "--enable-shared" in caught.value.hint


def test_numpy_2_is_refused_because_answers_would_be_empty() -> None:
    require_numpy_1("1.26.4")
    with pytest.raises(ServerError, match=r"NumPy 2\.1\.0 .* empty outputs"):
        require_numpy_1("2.1.0")


def test_a_system_triton_is_taken_from_path_with_its_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.touch(mode=0o755)
    (tmp_path / "backends" / "python").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(binary.parent))
    found = find_triton("system")
    assert found.binary == binary
    assert found.arguments == [f"--backend-directory={SCRATCH}/backends"]
    assert found.links == {"backends/python": str(tmp_path / "backends" / "python")}
    assert "LD_LIBRARY_PATH" not in found.prepend
    with_ours = find_triton("system", in_process=True)
    assert set(with_ours.links) == {*found.links, *IN_PROCESS_FILES}


def test_without_a_system_triton_the_error_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(installation, "SYSTEM_BINARY", tmp_path / "tritonserver")
    with pytest.raises(ServerError, match=f"no tritonserver on PATH, nor at {tmp_path}"):
        find_triton("system")
