"""With `servers.xla`, XLA compiles the dense part, and the answers stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from hpsbench.models.build import build_repository
from hpsbench.models.dlrm import Batch, numerical_features
from hpsbench.models.variants import select_variants
from hpsbench.presets import load_suite


def test_a_model_compiled_by_xla_answers_as_the_numpy_reference(tmp_path: Path) -> None:
    suite = load_suite(
        "smoke",
        ["servers.xla=true", "tables.num_embeddings=500", "dlrm.top_mlp=[64, 32, 1]"],
    )
    build = build_repository(suite, select_variants(["native_tf"]), tmp_path)
    folder = build.repository.version_folder("native_tf")
    assert '"xla", value: { string_value: "true" }' in (folder.parent / "config.pbtxt").read_text()
    serve = tf.saved_model.load(str(folder / "model.savedmodel")).signatures["serving_default"]
    functions = serve.graph.as_graph_def().library.function
    assert any(f.attr["_XlaMustCompile"].b for f in functions)
    for size in (1, 7):
        keys = np.random.default_rng(size).integers(500, size=(size, 26), dtype=np.int32)
        batch = Batch(keys, numerical_features(size, 13, seed=size))
        answer = serve(
            categorical_features=tf.constant(batch.categorical),
            numerical_features=tf.constant(batch.numerical),
        )["output_1"]
        np.testing.assert_allclose(answer, build.answer(batch), rtol=0, atol=2e-6)
