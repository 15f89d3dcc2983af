"""MirroredStrategy: each device asks its own cache, and all share the tables on the host."""

import json
import subprocess
import sys
from pathlib import Path

import mirrored_lookups
import pytest
import tensorflow as tf

from hpsbench.machine import find_gpus

ASKED_PER_DEVICE = mirrored_lookups.STEPS * 2 * 64 * 3


def run(kind: str, folder: Path) -> dict:
    program = Path(mirrored_lookups.__file__)
    done = subprocess.run(
        [sys.executable, str(program), kind, str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_cpus_answer_from_the_same_tables(tmp_path):
    found = run("CPU", tmp_path)
    if not tf.config.list_physical_devices("GPU"):
        assert found["host_keys"] == 2 * ASKED_PER_DEVICE
        assert found["gpu_keys"] == {}


@pytest.mark.gpu
@pytest.mark.skipif(len(find_gpus()) < 2, reason="needs two GPUs; with them, -m gpu runs it")
def test_two_gpus_have_a_cache_each(tmp_path):
    found = run("GPU", tmp_path)
    assert found["devices"] == ["GPU:0", "GPU:1"]
    assert found["gpu_keys"] == {"0": ASKED_PER_DEVICE, "1": ASKED_PER_DEVICE}
