"""Who owns what a model takes of a GPU: given back once, in order, whatever fails."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from hpsbench.errors import ServerError
from hpsbench.servers.backend import cuda, device_resources
from hpsbench.servers.backend.device_resources import DeviceResources


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order; streams only say so."""
    ended: list[str] = []

    def stream(device: int) -> SimpleNamespace:
        return SimpleNamespace(
            wait=lambda: ended.append("waited"), close=lambda: ended.append("stream")
        )

    monkeypatch.setattr(cuda, "use_device", lambda device: ended.append(f"use {device}"))
    monkeypatch.setattr(device_resources, "Stream", stream)
    return ended


def test_what_was_taken_last_ends_first_when_streams_are_done(ended: list[str]) -> None:
    resources = DeviceResources(3)
    resources.stream()
    resources.keep(lambda: ended.append("memory"))
    resources.keep(lambda: ended.append("graph"))
    ended.clear()
    resources.close()
    assert ended == ["use 3", "waited", "graph", "memory", "stream"]
    resources.close()
    assert len(ended) == 5


def test_a_part_ends_alone_or_with_the_whole(ended: list[str]) -> None:
    with DeviceResources(0) as resources:
        resources.stream()
        resources.keep(lambda: ended.append("whole"))
        first, second = resources.part(), resources.part()
        first.keep(lambda: ended.append("first"))
        second.keep(lambda: ended.append("second"))
        ended.clear()
        first.close()
        # Work on its stream, which is the whole's, may still use it.
        assert ended == ["use 0", "waited", "first"]
        ended.clear()
    assert [e for e in ended if e[:3] != "use"] == ["waited", "waited", "second", "whole", "stream"]


def test_what_cannot_end_is_logged_and_the_rest_ends(
    ended: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    resources = DeviceResources(1)

    def fail() -> None:
        raise ServerError("cuMemFree_v2: an illegal memory access", hint="restart")

    resources.keep(lambda: ended.append("first"))
    resources.keep(fail)
    resources.keep(lambda: ended.append("last"))
    with caplog.at_level(logging.WARNING, "hpsbench.servers"):
        resources.close()
    assert ended[-2:] == ["last", "first"]
    assert "GPU 1: a model left something behind: cuMemFree_v2: an illegal" in caplog.text


def test_after_the_end_there_is_nothing_to_be_had(ended: list[str]) -> None:
    resources = DeviceResources(1)
    resources.close()
    for ask in (
        resources.use,
        resources.part,
        resources.stream,
        resources.event,
        lambda: resources.memory(1),
        lambda: resources.page_locked(1),
        lambda: resources.graph(lambda: None, 0),
        lambda: resources.keep(lambda: None),
    ):
        with pytest.raises(ServerError, match="the model has given back what it held on GPU 1"):
            ask()
