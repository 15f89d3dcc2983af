"""Each thing that this machine may lack is named, with what to do about it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpsbench import forecast
from hpsbench.commands import doctor
from hpsbench.commands.check import Check, Status, ok, render
from hpsbench.commands.doctor import run_checks
from hpsbench.config import Suite
from hpsbench.errors import ServerDied
from hpsbench.machine import Gpu, cgroup_free_bytes
from hpsbench.models.variants import default_variants
from hpsbench.presets import load_suite
from hpsbench.servers.probe import Probe

GIB = 2**30


@pytest.fixture
def laptop() -> Suite:
    return load_suite("laptop")


@pytest.fixture
def well(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with memory and disk, whose Triton answers; nothing is started or compiled."""
    probe = Probe(version="2.51.0", ready_s=0.5)
    monkeypatch.setattr(doctor, "probe_triton", lambda config, folder: probe)
    monkeypatch.setattr(forecast, "free_memory_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(doctor, "find_gpus", lambda: ())
    monkeypatch.setattr(forecast, "find_gpus", lambda: ())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * GIB))
    monkeypatch.setitem(doctor.CHECKS, "HPS", lambda suite: ok("HPS", "compiled"))
    monkeypatch.setitem(doctor.CHECKS, "TensorFlow", lambda suite: ok("TensorFlow", "2"))
    monkeypatch.setitem(doctor.CHECKS, "ONNX Runtime", lambda suite: ok("ONNX Runtime", "1"))
    return monkeypatch


def finding(suite: Suite, name: str) -> Check:
    return next(check for check in run_checks(suite) if check.name == name)


def test_a_machine_that_lacks_nothing_is_ok_in_every_line(
    laptop: Suite, well: pytest.MonkeyPatch
) -> None:
    checks = run_checks(laptop)
    assert [check.name for check in checks] == list(doctor.CHECKS)
    assert {check.status for check in checks} == {Status.OK}
    assert "2.51.0 (bundled) answers right, ready after 0.5 s" in render(checks)


def test_a_triton_that_does_not_answer_is_told_in_one_line(
    laptop: Suite, well: pytest.MonkeyPatch
) -> None:
    def dies(config: object, folder: object) -> Probe:
        raise ServerDied("triton exited with 1; its last lines:\na\nb", hint="read the log")

    well.setattr(doctor, "probe_triton", dies)
    check = finding(laptop, "Triton")
    assert not check.ok
    assert "\n" not in render([check])
    assert render([check]).endswith("triton exited with 1; its last lines:; read the log")


def test_a_check_that_breaks_does_not_stop_the_others(
    laptop: Suite, well: pytest.MonkeyPatch
) -> None:
    def breaks(suite: Suite) -> Check:
        raise RuntimeError("no\nidea")

    well.setitem(doctor.CHECKS, "GPU", breaks)
    checks = run_checks(laptop)
    assert [check.name for check in checks if not check.ok] == ["GPU"]
    assert "RuntimeError: no idea" in render(checks)


@pytest.mark.parametrize("cxx", ["/no/such/g++", "false"], ids=["missing", "broken"])
def test_a_missing_compiler_names_the_package(
    laptop: Suite, well: pytest.MonkeyPatch, cxx: str
) -> None:
    well.setenv("CXX", cxx)
    check = finding(laptop, "compiler")
    assert not check.ok
    assert cxx in check.finding
    assert "apt-get install g++" in check.what_to_do


def test_numpy_2_fails_for_the_bundled_triton_only(well: pytest.MonkeyPatch) -> None:
    well.setattr(doctor.metadata, "version", lambda name: "2.2.0")
    bundled = finding(load_suite("laptop"), "NumPy")
    assert not bundled.ok
    assert "numpy>=1.26,<2" in bundled.what_to_do
    assert finding(load_suite("laptop", ["servers.triton=system"]), "NumPy").ok


@pytest.mark.parametrize(
    ("free_gib", "status"), [(64, Status.OK), (4, Status.WARNING), (1, Status.FAILED)]
)
def test_memory_is_compared_with_what_the_preset_needs(
    laptop: Suite, well: pytest.MonkeyPatch, free_gib: int, status: Status
) -> None:
    well.setattr(forecast, "free_memory_bytes", lambda: free_gib * GIB)
    assert finding(laptop, "memory").status is status


def default_places(suite: Suite) -> list[forecast.Place]:
    return forecast.places_of(suite, [v.name for v in default_variants(suite)[0]])


@pytest.mark.parametrize("preset", ["smoke", "laptop", "criteo", "fusion-8"])
@pytest.mark.parametrize("gpu_gib", [None, 80])
def test_doctor_and_a_run_agree_on_what_fits(
    well: pytest.MonkeyPatch, preset: str, gpu_gib: int | None
) -> None:
    if gpu_gib is not None:
        gpus = (Gpu(name="NVIDIA H100", memory_bytes=gpu_gib * GIB, driver="575.1"),)
        for module in (doctor, forecast):
            well.setattr(module, "find_gpus", lambda: gpus)
        well.setattr(forecast, "installed_versions", dict)
    suite = load_suite(preset)
    places = default_places(suite)
    whole = forecast.needed(suite, places, on_gpu=gpu_gib is not None)
    for free in (whole.host, whole.host - 1):
        well.setattr(forecast, "free_memory_bytes", lambda free=free: free)
        left_out = forecast.forecast(suite, places, forecast.free_memory()).left_out
        assert bool(left_out) == (free < whole.host)
        check = finding(suite, "memory")
        # The margin is warned of, and so is what is left out.
        assert check.status is Status.WARNING
        told = f"{len(left_out)} of {len(places)} benchmarks would be left out" in check.finding
        assert told == bool(left_out)
        assert f"{preset} needs about {whole.host / GIB:.1f} GiB" in check.finding
    if gpu_gib is not None:
        assert "80.0 GiB free on the GPU" in check.finding


def test_a_preset_that_is_too_large_names_both_sizes(well: pytest.MonkeyPatch) -> None:
    well.setattr(forecast, "free_memory_bytes", lambda: 16 * GIB)
    check = finding(load_suite("criteo"), "memory")
    assert not check.ok
    assert "preset criteo is too large for this machine: up to batch 32 with 1 " in check.finding
    assert re.search(r"about 1\d\.\d GiB of host memory, and 16\.0 GiB are free", check.finding)
    assert "--preset laptop" in check.what_to_do


def test_a_container_has_what_its_limit_leaves() -> None:
    stat = "anon 5\ninactive_file 300\nactive_file 7\n"
    assert cgroup_free_bytes("max\n", "900\n", stat) is None
    assert cgroup_free_bytes("1000\n", "900\n", stat) == 400
    assert cgroup_free_bytes("1000\n", "2000\n", "") == 0


@pytest.mark.parametrize(
    ("name", "to_do"), [("disk", "HPSBENCH_CACHE_DIR"), ("/dev/shm", "--shm-size")]
)
def test_too_little_space_is_told_before_it_runs_out(
    laptop: Suite, well: pytest.MonkeyPatch, tmp_path: Path, name: str, to_do: str
) -> None:
    well.setenv("HPSBENCH_CACHE_DIR", str(tmp_path / "not" / "yet"))
    well.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    check = finding(laptop, name)
    assert not check.ok
    assert to_do in check.what_to_do


def test_a_gpu_that_holds_the_rows_is_named_and_a_smaller_one_refused(
    well: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu(name="NVIDIA T4", memory_bytes=15 * GIB, driver="575.1")
    for module in (doctor, forecast):
        well.setattr(module, "find_gpus", lambda: (gpu,))
    well.setattr(forecast, "installed_versions", dict)
    assert finding(load_suite("laptop"), "GPU").finding == "NVIDIA T4, 15 GiB (driver 575.1)"
    assert (
        "15.0 GiB free on the GPU, preset laptop" in finding(load_suite("laptop"), "memory").finding
    )
    criteo = finding(load_suite("criteo"), "memory")
    assert not criteo.ok
    assert "GiB of GPU memory, and 15.0 GiB are free" in criteo.finding
    well.setattr(doctor, "find_gpus", lambda: (gpu, gpu))
    both = "0: NVIDIA T4, 15 GiB, 1: NVIDIA T4, 15 GiB (driver 575.1)"
    assert finding(load_suite("laptop"), "GPU").finding == both


def test_another_parameter_server_must_be_installed(well: pytest.MonkeyPatch) -> None:
    suite = load_suite("laptop", ["hps.module=hierarchical_parameter_server"])
    check = doctor._parameter_server(suite)
    assert not check.ok
    assert "hierarchical_parameter_server cannot be imported" in check.finding


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        ("raise ModuleNotFoundError('No module named tensorflow')", "No module named tensorflow"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "killed by SIGILL"),
    ],
    ids=["missing", "old-processor"],
)
def test_a_tensorflow_that_cannot_be_imported_is_told_with_its_reason(
    laptop: Suite, monkeypatch: pytest.MonkeyPatch, ended: str, reason: str
) -> None:
    monkeypatch.setattr(doctor, "_TENSORFLOW", ended)
    check = doctor._tensorflow(laptop)
    assert not check.ok
    assert reason in check.finding
    assert "hpsbench[cpu]" in check.what_to_do


def test_a_tensorflow_that_sees_no_gpu_of_the_machine_is_warned_about(
    laptop: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_TENSORFLOW", 'print(\'{"version": "2.21.0", "gpus": 0}\')')
    monkeypatch.setattr(doctor, "find_gpus", lambda: ())
    assert doctor._tensorflow(laptop).finding == "2.21.0 on CPU"
    gpu = Gpu(name="NVIDIA T4", memory_bytes=15 * GIB, driver="575.1")
    monkeypatch.setattr(doctor, "find_gpus", lambda: (gpu,))
    check = doctor._tensorflow(laptop)
    assert check.status is Status.WARNING
    assert "hpsbench[gpu]" in check.what_to_do


def test_a_native_library_that_does_not_build_is_told_with_its_hint(
    laptop: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = '{"problem": "no compiler\\\\n  at all", "hint": "apt-get install g++"}'
    monkeypatch.setattr(doctor, "_PARAMETER_SERVER", f"print('{answer}')")
    check = doctor._parameter_server(laptop)
    assert not check.ok
    assert (check.finding, check.what_to_do) == ("no compiler at all", "apt-get install g++")


def test_lines_are_aligned_and_say_what_to_do() -> None:
    checks = [
        Check(name="Triton", status=Status.OK, finding="2.51.0"),
        Check(name="GPU", status=Status.WARNING, finding="small", what_to_do="buy one"),
        Check(name="memory", status=Status.FAILED, finding="none", what_to_do="add some"),
    ]
    assert render(checks) == (
        "ok       Triton  2.51.0\nwarning  GPU     small; buy one\nFAILED   memory  none; add some"
    )


def test_a_finding_that_is_not_ok_must_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="GPU"):
        Check(name="GPU", status=Status.FAILED, finding="broken")


def test_onnx_runtime_is_asked_in_a_process_of_its_own(
    laptop: Suite, well: pytest.MonkeyPatch
) -> None:
    check = doctor._onnx_runtime(laptop)
    assert check.status is Status.OK
    assert check.finding.endswith(" on CPU")


def test_an_onnx_runtime_without_cuda_on_a_gpu_machine_is_a_warning(
    laptop: Suite, well: pytest.MonkeyPatch
) -> None:
    well.setattr(doctor, "find_gpus", lambda: ("a GPU",))
    answer = {"version": "1.32.0", "providers": ["CPUExecutionProvider"]}
    well.setattr(doctor, "_ask_python", lambda code: ("", answer))
    check = doctor._onnx_runtime(laptop)
    assert check.status is Status.WARNING
    assert "1.32.0 cannot use this machine's GPUs" in check.finding
    well.setattr(doctor, "_ask_python", lambda code: ("No module named 'onnxruntime'", {}))
    assert doctor._onnx_runtime(laptop).status is Status.FAILED
