"""The class of a machine is shared by its likes, and by no others."""

from __future__ import annotations

import json

import pytest

from hpsbench.machine import cpu_class, gpu_class, installed_versions, this_machine, usable_cores

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9B14
"""
INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
"""
ARM = """processor\t: 0
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        pytest.param(AMD, "cpu-amd-epyc-fam25-mod17-2c", id="amd"),
        pytest.param(INTEL, "cpu-intel-xeon-fam6-mod143-2c", id="intel"),
        pytest.param(ARM, "cpu-arm-0x41-0xd4f-2c", id="arm"),
    ],
)
def test_a_cpu_class_names_vendor_family_model_and_cores(cpuinfo: str, expected: str) -> None:
    assert cpu_class(cpuinfo, 2) == expected


def test_a_cpu_class_ignores_what_differs_within_a_fleet() -> None:
    other = AMD.replace("9B14", "7B13") + "cpu MHz\t\t: 2596.1\nmicrocode\t: 0x1\n"
    assert cpu_class(AMD, 4) == cpu_class(other, 4)
    assert cpu_class(AMD, 4) != cpu_class(AMD, 8)


def test_a_cpu_class_without_proc_cpuinfo_names_the_architecture() -> None:
    assert cpu_class("", 2).startswith("cpu-")


def test_a_gpu_class_is_its_model() -> None:
    assert gpu_class("NVIDIA H100 80GB HBM3") == "gpu-nvidia-h100-80gb-hbm3"


def test_cores_are_bounded_by_the_quota_of_the_cgroup() -> None:
    cores = usable_cores()
    assert usable_cores("max 100000") == cores
    assert usable_cores("100000 100000") == 1
    assert usable_cores("50000 100000") == 1
    assert usable_cores(f"{(cores + 5) * 100000} 100000") == cores


def test_this_machine_is_a_json_object_with_the_versions_that_matter() -> None:
    machine = this_machine()
    assert json.loads(json.dumps(machine.fingerprint)) == machine.fingerprint
    assert machine.cls == machine.cls.lower()
    assert {"python", "numpy", "hpsbench", "tritonclient"} <= installed_versions().keys()
