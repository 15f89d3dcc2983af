"""A served model whose tables cannot be opened is not ready, and says why; the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from recached_models import copy_models
from test_served_variants import a_batch

from hpsbench.errors import ServerError
from hpsbench.plugin import OPTIONS_KEY
from hpsbench.serving import ServedVariants

pytestmark = pytest.mark.server

#: The models that open tables, of each kind of model.
WITH_LOOKUP = {
    "dlrm": ("hps_tf", "hps_ensemble_lookup", "hps_onnx_fp32"),
    "fusion": ("unfused", "fused"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = metafunc.config.stash[OPTIONS_KEY].suite
    metafunc.parametrize("model", WITH_LOOKUP[suite.model])


def test_a_model_without_its_tables_is_not_ready(
    served: ServedVariants, model: str, tmp_path: Path
) -> None:
    suite, server = served.build.suite, served.server
    count = 1 if suite.fusion is None else suite.fusion.num_tables
    nowhere = tuple(str(tmp_path / f"nowhere{table}") for table in range(count))
    names = copy_models(
        served.build.repository.root, [model], "homeless", {"sparse_files": nowhere}
    )
    with pytest.raises(ServerError) as caught:
        server.load(names[model])
    assert f"sparse model {nowhere[0]} is not a folder" in str(caught.value)
    assert "give a folder that holds key and emb_vector" in str(caught.value)
    assert server.models()[names[model]].startswith("UNAVAILABLE")
    variant = next(v for v in served.build.variants if model in v.models)
    with served.client(variant, [a_batch(suite, 3)]) as client:
        assert client.infer()["output_1"].shape == (3, 1)
