"""A SavedModel is exported with nothing at hand, and initialises itself in another process."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from lookup_models import seeded_table, write_model

import hpsbench.hps as hps
from hpsbench.hps import session

TABLES = [seeded_table(np.arange(10_000) + i * 10_000, 16, default=i / 2, seed=i) for i in range(8)]

SERVE = """
import sys
{imports}
import numpy as np
model = tf.saved_model.load(sys.argv[1])
keys = np.load(sys.argv[2])
try:
    answers = model.serve([tf.constant(keys[:, i]) for i in range(keys.shape[1])])
except tf.errors.OpError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
np.save(sys.argv[3], np.stack([answer.numpy() for answer in answers], axis=1))
"""
HPS_FIRST = "import hpsbench.hps\nimport tensorflow as tf"
TENSORFLOW_FIRST = "import tensorflow as tf\nimport hpsbench.hps"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Export a model of eight lookups and of one for all eight, whose configuration is not there.

    Its outputs are the eight of each kind.
    """
    session.reset()
    folder = tmp_path_factory.mktemp("exported")
    inputs = [keras.Input((26,), dtype="int64", name=f"ids{i}") for i in range(8)]
    common = {"ps_config_file": str(folder / "ps.json"), "global_batch_size": 256}
    outputs = [hps.LookupLayer("m", i, 16, tf.float32, **common)(inputs[i]) for i in range(8)]
    outputs += hps.MultiLookupLayer("m", range(8), [16] * 8, tf.float32, **common)(inputs)
    keras.Model(inputs, outputs).export(folder / "saved_model", verbose=False)
    assert hps.statistics() == {}, "export must initialise nothing"
    return folder


def serve(folder: Path, keys, *, imports: str) -> subprocess.CompletedProcess:
    """Ask the model in a process of its own; its answers are in answers.npy."""
    np.save(folder / "keys.npy", keys)
    files = [folder / name for name in ("saved_model", "keys.npy", "answers.npy")]
    return subprocess.run(
        [sys.executable, "-c", SERVE.format(imports=imports), *files],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def published_case_keys() -> np.ndarray:
    """Return int64[256, 8, 26]: keys of each table, of its siblings, and of none."""
    return np.random.default_rng(0).integers(-1000, 81_000, (256, 8, 26))


@pytest.mark.parametrize(
    ("fuse", "imports"),
    [(False, HPS_FIRST), (True, TENSORFLOW_FIRST)],
    ids=["unfused, hps imported first", "fused, tensorflow imported first"],
)
def test_one_saved_model_runs_fused_and_unfused_in_another_process(folder, fuse, imports):
    write_model(folder, TABLES, fuse=fuse)
    keys = published_case_keys()
    result = serve(folder, keys, imports=imports)
    assert result.returncode == 0, result.stderr
    expected = np.stack([table.answer(keys[:, i]) for i, table in enumerate(TABLES)], axis=1)
    answers = np.load(folder / "answers.npy")
    np.testing.assert_array_equal(answers[:, :8], expected)
    np.testing.assert_array_equal(answers[:, 8:], expected)


def test_a_saved_model_without_its_configuration_names_the_file(folder):
    (folder / "ps.json").unlink(missing_ok=True)
    result = serve(folder, published_case_keys(), imports=HPS_FIRST)
    assert result.returncode == 1
    problem = f"hps: model m: configuration {folder}/ps.json cannot be read: No such file"
    assert "FailedPreconditionError" in result.stderr
    assert problem in result.stderr
