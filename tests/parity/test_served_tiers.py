"""The lookup model behind Triton answers with the rows of every tier, cached on a GPU or not."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsbench.config import ServerConfig
from hpsbench.errors import RequestError
from hpsbench.load.client import connect
from hpsbench.machine import find_gpus
from hpsbench.models.repository import ModelRepository, TensorSpec
from hpsbench.servers.triton import TritonServer, running_triton
from tests.tiers.redis_server import redis_server
from tests.tiers.served_tables import DEFAULTS, DIMS, NUM_KEYS, Truth, table_keys, write_tables

pytestmark = pytest.mark.server

BOUNDED = {
    "type": "hash_map", "num_partitions": 3, "overflow_margin": 20, "initial_cache_rate": 0.1,
    "overflow_policy": "evict_oldest", "cache_missed_embeddings": True,
}  # fmt: skip
#: What each tier needs of this machine.
NEEDS = {"mapped": None, "volatile": None, "rocksdb": "rocksdict", "redis": "redis-server"}
#: A part of the rows, and every lookup fetches the others from the tiers.
CACHES = {
    "cpu": {"gpucache": False},
    "gpu": {"gpucache": True, "gpucacheper": 0.2, "hit_rate_threshold": 1.1},
}


def is_there(need: str | None) -> bool:
    return need is None or bool(shutil.which(need) or importlib.util.find_spec(need))


def tier(name: str) -> Any:
    return pytest.param(
        name,
        marks=pytest.mark.skipif(
            not is_there(NEEDS[name]), reason=f"needs {NEEDS[name]}, as CI has"
        ),
    )


DEVICES = ("cpu", pytest.param("gpu", marks=pytest.mark.gpu))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One Triton with a lookup model for each tier, and each device that there is."""
    folder = tmp_path_factory.mktemp("tiers")
    repository = ModelRepository(folder / "repository")
    with contextlib.ExitStack() as stack:
        sections: dict[str, dict[str, Any]] = {
            "mapped": {"volatile_db": {"type": "parallel_hash_map"}},
            "volatile": {"volatile_db": BOUNDED},
            "rocksdb": {},
            "redis": {},
        }
        if is_there(NEEDS["redis"]):
            redis = stack.enter_context(redis_server(folder))
            sections["redis"]["volatile_db"] = {
                "type": "redis_cluster", "address": redis.address, "num_partitions": 5,
            }  # fmt: skip
        models = []
        for name in filter(lambda name: is_there(NEEDS[name]), NEEDS):
            for device in ("cpu", "gpu") if find_gpus() else ("cpu",):
                model = f"{name}_{device}"
                if name == "rocksdb":
                    database = {"type": "rocks_db", "path": str(folder / model)}
                    sections[name]["persistent_db"] = database
                path = write_tables(folder, model, model_options=CACHES[device], **sections[name])
                add_lookup(repository, model, path)
                models.append(model)
        log = folder / "triton.log"
        yield stack.enter_context(running_triton(repository.root, models, ServerConfig(), log=log))


def add_lookup(repository: ModelRepository, model: str, ps_config_file: Path) -> None:
    repository.add_python_model(
        model,
        "lookup_model",
        [TensorSpec("KEYS", "TYPE_INT64", (-1, -1)), TensorSpec("NUMKEYS", "TYPE_INT32", (-1, -1))],
        [TensorSpec("OUTPUT0", "TYPE_FP32", (-1,))],
        {"ps_config_file": str(ps_config_file), "hps_model": model},
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [tier(name) for name in NEEDS])
def test_a_served_lookup_answers_with_the_rows_of_any_tier(
    server: TritonServer, name: str, device: str
) -> None:
    truth, rng = Truth(), np.random.default_rng(7)
    counts = [(NUM_KEYS,) * 3, (0, 900, 1), (26, 26, 26), (1, 0, 0)]
    requests, expected = [], []
    for asked in counts:
        # One key in four or so is in no table, and is answered with the default.
        keys = [
            rng.choice(np.concatenate([table_keys(t), rng.integers(-2100, 4500, 100)]), count)
            for t, count in enumerate(asked)
        ]
        requests.append({
            "KEYS": np.concatenate(keys)[None],
            "NUMKEYS": np.array([asked], np.int32),
        })  # fmt: skip
        expected.append(np.concatenate([truth.answer(t, k).ravel() for t, k in enumerate(keys)]))
    endpoint = server.endpoint(f"{name}_{device}")
    for _ in range(2):
        with connect(endpoint, requests, protocol="http", timeout_s=60) as client:
            for rows in expected:
                np.testing.assert_array_equal(client.infer()["OUTPUT0"], rows)
    assert len(expected[0]) == NUM_KEYS * sum(DIMS)
    assert all(np.isin(DEFAULTS, expected[0]))


@pytest.mark.parametrize(
    ("num_keys", "problem"),
    [
        (np.empty((0, 3), np.int32), r"NUMKEYS is int32\[0\]"),
        (np.array([[1, 2]], np.int32), r"NUMKEYS is int32\[2\]"),
        (np.array([[1, 1, 2]], np.int32), r"NUMKEYS \[1, 1, 2\] and 3 keys disagree"),
        (np.array([[4, -1, 0]], np.int32), r"NUMKEYS \[4, -1, 0\] and 3 keys disagree"),
    ],
)
def test_counts_that_do_not_fit_are_named(
    server: TritonServer, num_keys: np.ndarray, problem: str
) -> None:
    request = {"KEYS": np.zeros((1, 3), np.int64), "NUMKEYS": num_keys}
    endpoint = server.endpoint("mapped_cpu")
    with (
        connect(endpoint, [request], protocol="http", timeout_s=60) as client,
        pytest.raises(RequestError, match=problem),
    ):
        client.infer()
