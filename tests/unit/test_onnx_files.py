"""Models that a GPU's engines cannot be made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpsbench.errors import ServerError
from hpsbench.servers.backend.dense_engines import read_model


@pytest.mark.parametrize("content", [b"no model", None], ids=["garbage", "missing"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ServerError, match=r"model\.onnx is no ONNX model: ") as refused:
        read_model(path)
    assert "build the model repository again" in refused.value.hint
