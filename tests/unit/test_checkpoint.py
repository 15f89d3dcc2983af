"""An interrupted session's parts: kept as they come, and given to a session of its like only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hpsbench import checkpoint
from hpsbench.checkpoint import Checkpoint, InterruptedSession, identity_of, interrupted, resumable
from hpsbench.errors import BaselineError, ConfigError
from hpsbench.presets import load_suite
from hpsbench.session import SessionPart, run_session
from tests.scripted import MACHINE
from tests.unit.test_session import PLAN, SUITE, FakeHost

SOURCES = Path(checkpoint.__file__).parent


def begun(folder: Path, run_id: str = "one", **changed: object) -> Checkpoint:
    suite = dataclasses.replace(SUITE, **changed)  # type: ignore[arg-type]
    return Checkpoint(
        folder,
        InterruptedSession(
            run_id=run_id,
            recorded_at="2026-01-02T03:04:05Z",
            identity=identity_of(suite, PLAN, MACHINE, sources=SOURCES),
            num_parts=6,
        ),
    )


def measured(**kwargs: object):  # type: ignore[no-untyped-def]
    host = FakeHost()
    found = run_session(
        SUITE, PLAN, host.launch, clock_ns=host.clock_ns, sleep=host.sleep, **kwargs
    )
    return found, host


def test_a_session_goes_on_after_each_part_it_was_interrupted_in(tmp_path: Path) -> None:
    whole, _ = measured()
    for interrupted_after in range(1, 6):
        kept = begun(tmp_path, str(interrupted_after))
        taken: list[SessionPart] = []

        def keep(part: SessionPart, kept=kept, taken=taken, last=interrupted_after) -> None:  # type: ignore[no-untyped-def]
            kept.keep(part)
            taken.append(part)
            if len(taken) == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measured(on_part=keep)
        assert sorted(kept.parts(), key=lambda p: (p.launch, p.batch_size)) == taken
        found, host = measured(kept=kept.parts())
        # Launches that are measured are not started, and neither is anything asked again.
        assert host.started == 3 - interrupted_after // 2
        assert found == whole


def test_a_part_with_a_problem_is_measured_again(tmp_path: Path) -> None:
    host = FakeHost()
    host.failing = {(2, "hps_tf")}
    kept = begun(tmp_path)
    run_session(
        SUITE, PLAN, host.launch, on_part=kept.keep, clock_ns=host.clock_ns, sleep=host.sleep
    )
    assert {(p.launch, p.batch_size) for p in kept.parts()} == {(1, 1), (1, 4), (3, 1), (3, 4)}


def test_only_a_session_of_its_like_is_continued_and_the_newest_of_them(tmp_path: Path) -> None:
    def part(number: int) -> SessionPart:
        return SessionPart(launch=number, batch_size=1, observations=())

    with pytest.raises(ConfigError, match="no interrupted session"):
        resumable(tmp_path, begun(tmp_path).session.identity)
    longer = dataclasses.replace(SUITE.load, measure_s=9.0)
    for name, changed in (("a", {}), ("b", {}), ("c", {"load": longer})):
        begun(tmp_path, name, **changed).keep(part(1))
    begun(tmp_path, "d")
    found = resumable(tmp_path, begun(tmp_path).session.identity)
    assert (found.session.run_id, found.num_kept) == ("b", 1)
    other = begun(tmp_path, preset="smoke").session.identity
    with pytest.raises(ConfigError) as caught:
        resumable(tmp_path, other)
    assert caught.value.problem == (
        "the interrupted session of 2026-01-02T03:04:05Z was another one: "
        "load.measure_s 9.0 -> 0.001; preset test -> smoke"
    )
    found.discard()
    assert [c.session.run_id for c in interrupted(tmp_path)] == ["c", "a"]


@pytest.mark.parametrize(
    ("machine", "named"),
    [
        (dataclasses.replace(MACHINE, cls="cpu-other-2c"), "machine"),
        (dataclasses.replace(MACHINE, fingerprint={"cpu": "Other CPU"}), "machine.cpu"),
        (dataclasses.replace(MACHINE, versions={"tensorflow": "2.22.0"}), "tensorflow"),
    ],
)
def test_another_machine_or_version_is_another_session(machine, named, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    suite = load_suite("smoke")
    mine, other = (
        identity_of(suite, PLAN, m, sources=SOURCES).settings for m in (MACHINE, machine)
    )
    assert {name for name in mine if mine[name] != other[name]} == {named}


#: What does not change what is measured: how long it is waited for.
FREE = ("servers.startup_timeout_s", "servers.request_timeout_s")
OTHER = {
    "load.keys": "zipf",
    "load.protocol": "grpc",
    "load.also_keys": ("zipf",),
    "servers.triton": "system",
    "dlrm.top_mlp": (8, 1),
}


def other_value(name: str, value: object) -> object:
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[:1]
    return f"{value}x" if isinstance(value, str) else value + 1  # type: ignore[operator]


@pytest.mark.parametrize("section", ["tables", "dlrm", "fusion", "load", "servers", "hps"])
def test_every_setting_that_is_changed_makes_another_session(section: str) -> None:
    suite = load_suite("fusion-8" if section == "fusion" else "laptop")
    mine = identity_of(suite, PLAN, MACHINE, sources=SOURCES)
    values = getattr(suite, section)
    for field in dataclasses.fields(values):
        name = f"{section}.{field.name}"
        changed = other_value(name, getattr(values, field.name))
        other = dataclasses.replace(
            suite, **{section: dataclasses.replace(values, **{field.name: changed})}
        )
        is_alike = identity_of(other, PLAN, MACHINE, sources=SOURCES) == mine
        assert is_alike == (name in FREE), name


def test_code_that_changed_is_another_session(tmp_path: Path) -> None:
    suite = load_suite("smoke")
    (tmp_path / "hps").mkdir()
    code = tmp_path / "hps" / "lookup.cc"
    code.write_text("return 1;")
    before = identity_of(suite, PLAN, MACHINE, sources=tmp_path)
    (tmp_path / "hps" / "lookup.so").write_bytes(b"built")
    assert identity_of(suite, PLAN, MACHINE, sources=tmp_path) == before
    code.write_text("return 2;")
    assert identity_of(suite, PLAN, MACHINE, sources=tmp_path) != before


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    kept = begun(tmp_path)
    kept.keep(SessionPart(launch=1, batch_size=1, observations=()))
    (path,) = (tmp_path / "one").glob("launch-*")
    path.write_text("{")
    with pytest.raises(BaselineError, match=r"launch-1-b1\.json is no JSON") as caught:
        kept.parts()
    assert "without --resume" in caught.value.hint


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BaselineError, match="cannot keep what was measured"):
        begun(tmp_path / "file").keep(SessionPart(launch=1, batch_size=1, observations=()))
