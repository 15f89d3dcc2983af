"""How Triton is started, and what its log says about a start that failed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hpsbench.servers.launch import held_port, load_failures, server_arguments


def arguments() -> list[str]:
    return server_arguments("me", Path("/models"), ["a", "b", "a"], [1, 2, 3])


def test_triton_listens_on_loopback_only() -> None:
    assert {f"--{s}-address=127.0.0.1" for s in ("http", "grpc", "metrics")} <= set(arguments())
    assert {"--http-port=1", "--grpc-port=2", "--metrics-port=3"} <= set(arguments())


def test_each_model_is_loaded_once_and_never_started_twice_to_complete_its_config() -> None:
    loads = [a for a in arguments() if a.startswith("--load-model")]
    assert loads == ["--load-model=a", "--load-model=b"]
    assert "--disable-auto-complete-config" in arguments()


def test_shared_memory_carries_the_name_of_the_server() -> None:
    assert "--backend-config=python,shm-region-prefix-name=me" in arguments()
    assert "--id=me" in arguments()


def test_held_ports_differ_and_can_be_listened_at_by_a_server_that_reuses_addresses() -> None:
    with held_port() as first, held_port() as second:
        assert first != second
        with socket.create_server(("127.0.0.1", first), reuse_port=False):
            # create_server sets SO_REUSEADDR, as Triton does.
            pass
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", second))


def test_reasons_of_failed_models_are_quoted_from_the_log() -> None:
    log = r"""
I1122 10:30:42.0 1 model_lifecycle.cc:472] "loading: bad:1"
E1122 10:30:42.5 1 model_lifecycle.cc:642] "failed to load 'bad' version 1: Internal: ValueError: 3 rows\nnot 4\n\nAt:\n  model.py(3): initialize\n"
E1122 10:30:49.8 1 model_repository_manager.cc:1460] "Poll failed for model directory 'c': no config.pbtxt"
E1122 10:30:53.1 1 model_repository_manager.cc:1415] "failed to poll model 'd': model not found in any model repository."
W1122 10:30:53.1 1 x.cc:1] "failed to load 'only a warning'"
"""  # noqa: E501
    assert load_failures(log) == [
        "failed to load 'bad' version 1: Internal: ValueError: 3 rows\nnot 4\n\nAt:\n"
        "  model.py(3): initialize",
        "Poll failed for model directory 'c': no config.pbtxt",
        "failed to poll model 'd': model not found in any model repository.",
    ]
