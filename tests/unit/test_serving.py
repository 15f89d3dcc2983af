from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hpsbench.errors import ServerError
from hpsbench.models.kinds.dlrm import DlrmBuild
from hpsbench.models.repository import ModelRepository
from hpsbench.models.variants import Variant, select_variants
from hpsbench.presets import load_suite
from hpsbench.servers.launch import held_port
from hpsbench.servers.triton import TritonServer
from hpsbench.serving import (
    DISTINCT_REQUESTS,
    NUMPY_SAMPLES,
    ServedVariants,
    numpy_reference,
    parity_suite,
    request_batches,
    require_server,
)


def test_a_server_that_does_not_answer_is_told_before_anything_is_built() -> None:
    with held_port() as port:
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(ServerError, match=f"no answer from triton at {url}"):
            require_server(load_suite("smoke", [f"servers.triton={url}"]))
    require_server(load_suite("smoke"))


class RowsAsked(DlrmBuild):
    """A build whose table is made of ones, and which notes the keys it was asked for."""

    def rows(self, keys: np.ndarray) -> np.ndarray:
        self.__dict__.setdefault("asked", []).append(keys)
        return np.ones((*keys.shape, self.suite.tables.embedding_dim), np.float32)


@pytest.mark.parametrize(
    ("keys", "count"),
    [("repeated", 1), ("uniform", DISTINCT_REQUESTS), ("zipf", DISTINCT_REQUESTS)],
)
def test_requests_carry_other_keys_where_the_stream_does(keys: str, count: int) -> None:
    suite = load_suite("smoke", [f"load.keys={keys}"])
    batches = request_batches(suite, 8)
    assert len({batch.categorical.tobytes() for batch in batches}) == len(batches) == count
    for batch in batches:
        assert batch.categorical.shape == (8, 26)
        assert batch.categorical.dtype == np.int32
        assert batch.numerical.shape == (8, 13)
        assert 0 <= batch.categorical.min() <= batch.categorical.max() < 20_000


def test_answers_are_compared_as_they_are_served_and_by_the_same_parameter_server() -> None:
    options = ["hps.module=other", "hps.gpucacheper=0.5", "hps.hit_rate_threshold=0.8"]
    options += ["servers.xla=true", "servers.triton=system", "servers.tensor_float_32=true"]
    suite = parity_suite(load_suite("laptop", options))
    # A small one answers for all of DLRM, and the many-table model for itself.
    assert suite.tables == load_suite("smoke").tables
    assert parity_suite(load_suite("fusion-8", options)).tables == load_suite("fusion-8").tables
    assert (suite.hps.module, suite.hps.gpucacheper) == ("other", 0.5)
    assert (suite.servers.xla, suite.servers.triton) == (True, "system")
    # Neither rounded nor answered with defaults.
    assert not suite.servers.tensor_float_32
    assert suite.hps.hit_rate_threshold == 1.0


def test_the_numpy_reference_takes_batches_in_turn_and_the_head_of_large_ones(
    tmp_path: Path,
) -> None:
    build = RowsAsked(
        load_suite("smoke", ["load.keys=uniform"]), tmp_path, ModelRepository(tmp_path)
    )
    batches = request_batches(build.suite, NUMPY_SAMPLES + 44)[:2]
    send = numpy_reference(build, batches)
    for _ in range(3):
        send()
    asked = build.__dict__["asked"]
    for keys, batch in zip(asked, [*batches, batches[0]], strict=True):
        np.testing.assert_array_equal(keys, batch.categorical[:NUMPY_SAMPLES])


def test_where_a_client_cannot_connect_those_before_it_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load_suite("smoke")
    variants = tuple(select_variants(["native_tf", "hps_tf"], suite))
    build = DlrmBuild(suite, tmp_path, ModelRepository(tmp_path), variants)
    config = dataclasses.replace(suite.servers, triton="http://127.0.0.1:1")
    server = TritonServer(http="127.0.0.1:1", grpc=None, metrics=None, config=config)
    monkeypatch.setattr(TritonServer, "tracing", lambda _: None)
    closed = []

    def client(_: ServedVariants, variant: Variant, __: object) -> SimpleNamespace:
        if variant.name == "hps_tf":
            raise ServerError("gone", hint="")
        return SimpleNamespace(send=None, close=lambda: closed.append(variant.name))

    monkeypatch.setattr(ServedVariants, "client", client)
    with pytest.raises(ServerError, match="gone"):
        ServedVariants(build=build, server=server).participants(7)
    assert closed == ["native_tf"]
