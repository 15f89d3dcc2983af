"""What the sides of a comparison are, how their servers start, and what they are asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpsbench.config import ServerConfig
from hpsbench.duets import pairs
from hpsbench.duets.benchmarks import benchmarks_of
from hpsbench.duets.decision import BASELINE, CANDIDATE
from hpsbench.duets.pairs import Contender, contender, fresh_pair
from hpsbench.errors import ConfigError, RequestError
from hpsbench.servers.cpus import even_shares, on_cpus
from hpsbench.servers.launch import server_arguments

COMPLETE = 'input [{ name: "x" }]\noutput [{ name: "y" }]\n'


def repository(folder: Path, **configurations: str) -> Path:
    for name, text in configurations.items():
        (folder / name).mkdir()
        (folder / name / "config.pbtxt").write_text(text)
    return folder


def side(source: str, *models: str) -> Contender:
    return contender(source, models=models or ("dlrm",), config=ServerConfig(), log=Path("log"))


def test_a_folder_is_served_and_a_url_is_attached_to(tmp_path: Path) -> None:
    folder = side(str(repository(tmp_path, dlrm=COMPLETE)))
    assert (folder.repository, folder.is_running) == (tmp_path, False)
    assert folder.config == ServerConfig()
    url = side("http://127.0.0.1:8000")
    assert url.is_running
    assert url.config.triton == "http://127.0.0.1:8000"


def test_triton_completes_configurations_only_where_something_is_missing(tmp_path: Path) -> None:
    repository(tmp_path, dlrm=COMPLETE)
    assert not side(str(tmp_path)).complete_config
    repository(tmp_path, other='input [{ name: "x" }]\n# output\n')
    assert side(str(tmp_path)).complete_config
    (tmp_path / "other" / "config.pbtxt").unlink()
    assert side(str(tmp_path)).complete_config
    flag = "--disable-auto-complete-config"
    assert flag in server_arguments("me", tmp_path, ["dlrm"], [1, 2, 3])
    assert flag not in server_arguments("me", tmp_path, ["dlrm"], [1, 2, 3], complete_config=True)


def test_a_folder_without_the_model_is_an_error_that_names_those_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no model 'dlrm'") as caught:
        side(str(repository(tmp_path, a=COMPLETE, b=COMPLETE)))
    assert caught.value.hint == "its models: a, b"
    with pytest.raises(ConfigError, match="has no model 'c'"):
        side(str(tmp_path), "a", "c")
    with pytest.raises(ConfigError, match="is no folder"):
        side(str(tmp_path / "a" / "config.pbtxt"))


@pytest.mark.parametrize(
    ("cpus", "shares"),
    [
        ([0, 1], None),
        ([0, 1, 2], None),
        ([3, 5, 7, 9], ({3, 5}, {7, 9})),
        ([0, 1, 2, 3, 4], ({0, 1}, {2, 3})),
    ],
)
def test_cpus_are_shared_evenly_where_there_are_enough(cpus: list[int], shares: Any) -> None:
    assert even_shares(cpus) == shares


def test_a_share_of_the_cpus_holds_only_while_it_is_asked_for() -> None:
    before = os.sched_getaffinity(0)
    one = frozenset([min(before)])
    with on_cpus(one):
        assert os.sched_getaffinity(0) == one
    with on_cpus(None):
        assert os.sched_getaffinity(0) == before
    with pytest.raises(RuntimeError), on_cpus(one):
        raise RuntimeError
    assert os.sched_getaffinity(0) == before


@dataclass
class FakeServer:
    name: str

    @property
    def http(self) -> str:
        return f"{self.name}:1"

    def tracing(self) -> None:
        return None

    def stop(self, grace_s: float) -> None:
        assert grace_s == 0


class Started:
    """Remembers which servers started, on which CPUs, and which were stopped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cpus: list[int]) -> None:
        self.started: list[tuple[str, frozenset[int]]] = []
        self.running: list[str] = []
        self.affinity = frozenset(cpus)
        monkeypatch.setattr(pairs.os, "sched_getaffinity", lambda _: self.affinity)
        monkeypatch.setattr(pairs, "on_cpus", self.on_cpus)
        monkeypatch.setattr(pairs, "running_triton", self.running_triton)
        self.share: Any = None

    @contextmanager
    def on_cpus(self, share: Any) -> Iterator[None]:
        self.share = share
        yield

    @contextmanager
    def running_triton(self, root: Path, models: Any, config: Any, **_: Any) -> Iterator[Any]:
        assert models == ("dlrm",)
        self.started.append((root.name, self.share))
        self.running.append(root.name)
        yield FakeServer(root.name)
        self.running.remove(root.name)


def contenders(tmp_path: Path) -> dict[str, Contender]:
    return {
        name: Contender(
            models=("dlrm",),
            repository=tmp_path / name,
            config=ServerConfig(),
            log=tmp_path / "log",
        )
        for name in (BASELINE, CANDIDATE)
    }


def test_order_and_cpus_change_from_launch_to_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch, [0, 1, 2, 3])
    for number in (1, 2):
        with fresh_pair(contenders(tmp_path), lambda *_: [], number):
            assert len(started.running) == 2
        assert started.running == []
    low, high = {0, 1}, {2, 3}
    assert started.started == [
        (BASELINE, low),
        (CANDIDATE, high),
        (CANDIDATE, low),
        (BASELINE, high),
    ]


def test_few_cpus_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch, [0, 1])
    with fresh_pair(contenders(tmp_path), lambda *_: [], 1):
        pass
    assert [share for _, share in started.started] == [None, None]


class FakeClient:
    opened = 0

    def __init__(self, endpoint: Any, inputs: Any, **_: Any) -> None:
        if inputs == ["refused"]:
            raise RequestError("cannot be reached", hint="none")
        type(self).opened += 1

    def send(self) -> None: ...

    def close(self) -> None:
        type(self).opened -= 1


def test_a_side_that_cannot_be_reached_leaves_no_open_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Started(monkeypatch, [0])
    monkeypatch.setattr(pairs, "connect", FakeClient)
    monkeypatch.setattr(FakeServer, "endpoint", lambda *_: None, raising=False)
    monkeypatch.setattr(FakeServer, "statistics", None, raising=False)

    def ask(name: str, server: Any, benchmark: Any) -> list[Any]:
        return ["refused"] if name == CANDIDATE else [{}]

    with fresh_pair(contenders(tmp_path), ask, 1) as pair, pytest.raises(RequestError):
        pair.participants(*benchmarks_of([("dlrm", 1)]))
    assert FakeClient.opened == 0
