"""Git revisions: their own code runs, in an environment that is made once."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from hpsbench import revisions
from hpsbench.commands import compared_sides
from hpsbench.errors import ConfigError
from hpsbench.load.inputs import read_input_data
from hpsbench.revisions import (
    Offer,
    build_models,
    find_commit,
    offered,
    prepare,
    project_folder,
)
from hpsbench.servers.metadata import InputMetadata, ModelMetadata

TAKES_IDS = ModelMetadata(
    model="hps_tf",
    max_batch_size=0,
    inputs=(InputMetadata(name="ids", datatype="INT32", shape=(-1, -1)),),
)
PYPROJECT = """\
[project]
name = "hpsbench"
version = "0.1.0"
dependencies = {dependencies}
"""
SERVING = """\
import numpy as np

def request_batches(suite, batch_size):
    return [np.full((batch_size, 2), word, np.int32) for word in (1, 2)]
"""
BUILD = """\
from types import SimpleNamespace

def build_repository(suite, variants, folder):
    root = folder / "{word}" / suite
    root.mkdir(parents=True)
    (root / variants[0].name).mkdir()
    return SimpleNamespace(repository=SimpleNamespace(root=root))
"""
VARIANTS = """\
from types import SimpleNamespace
import filelock  # an installed package, which the environment shares

def select_variants(names):
    if names != ["hps_tf"]:
        raise ValueError(f"unknown variant {names}")
    print("chatter on standard output")
    inputs = lambda batch: {"ids": batch}
    return [SimpleNamespace(name="hps_tf", models=("lookup", "hps_tf"), inputs=inputs)]
"""


def git(checkout: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(checkout), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(checkout: Path, word: str, dependencies: str = "[]") -> str:
    models = checkout / "hpsbench" / "models"
    models.mkdir(parents=True, exist_ok=True)
    (checkout / "pyproject.toml").write_text(PYPROJECT.format(dependencies=dependencies))
    (checkout / "hpsbench" / "__init__.py").touch()
    (checkout / "hpsbench" / "config.py").write_text(
        "def load_suite(preset, overrides): return '-'.join([preset, *overrides])"
    )
    (models / "__init__.py").touch()
    (models / "build.py").write_text(BUILD.format(word=word))
    (checkout / "hpsbench" / "serving.py").write_text(SERVING)
    (models / "variants.py").write_text(VARIANTS)
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", word)
    return git(checkout, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    return folder


def test_a_revision_is_known_by_every_name_that_git_knows(checkout: Path, tmp_path: Path) -> None:
    first = commit(checkout, "first")
    git(checkout, "tag", "v1")
    second = commit(checkout, "second")
    assert [find_commit(n, checkout) for n in ("HEAD", "HEAD~1", "v1", first[:9])] == [
        second,
        first,
        first,
        first,
    ]
    for unknown in ("nobody", "", "--help", "HEAD^{tree}"):
        assert find_commit(unknown, checkout) is None
    assert find_commit("HEAD", tmp_path / "absent") is None


def test_each_revision_builds_with_its_own_code(checkout: Path, tmp_path: Path) -> None:
    commits = [commit(checkout, word) for word in ("old", "new")]
    for sha, word in zip(commits, ("old", "new"), strict=True):
        revision = prepare(sha, checkout, tmp_path / "cache")
        folder = tmp_path / word
        folder.mkdir()
        built = build_models(
            revision,
            preset="smoke",
            places=[("hps_tf", 3), ("hps_tf", 1)],
            overrides=["a.b=1"],
            folder=folder / "models",
        )
        assert built.repository == folder / "models" / word / "smoke-a.b=1"
        assert (built.repository / "hps_tf").is_dir()
        assert built.models == ("lookup", "hps_tf")
        assert list(built.requests) == [("hps_tf", 3), ("hps_tf", 1)]
        for (_, size), file in built.requests.items():
            requests = read_input_data(file, TAKES_IDS, batch_size=1, shapes={})
            assert [r["ids"].tolist() for r in requests] == [[[1, 1]] * size, [[2, 2]] * size]
        # An installed hpsbench, among the shared packages, must not hide the revision's.
        (path,) = revision.python.parents[1].glob("lib/python*/site-packages/*.pth")
        assert path.read_text().splitlines()[0] == str(revision.python.parents[2] / "source")


def test_environments_that_were_long_not_used_are_removed_but_for_five(
    checkout: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    commits = [commit(checkout, f"version {n}") for n in range(8)]
    made = [prepare(sha, checkout, cache).python.parents[2] for sha in commits]
    old = time.time() - 15 * 24 * 3600
    for age, folder in enumerate(made[:7]):
        os.utime(folder / "ready", (old - age, old - age))
    prepare(commits[6], checkout, cache)  # removed with the two before it, and made again
    assert [folder.is_dir() for folder in made] == [
        True,
        True,
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    for sha in commits:
        prepare(sha, checkout, cache)
    for folder in made:
        os.utime(folder / "ready", (old + 2 * 24 * 3600,) * 2)
    prepare(commits[0], checkout, cache)
    assert all(folder.is_dir() for folder in made)


def test_a_revision_is_unpacked_by_a_python_without_archive_filters_too(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractall = tarfile.TarFile.extractall
    # This may be such a Python itself.
    filtered = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

    def of_python_3_11_2(archive: tarfile.TarFile, path: Path) -> None:
        extractall(archive, path, **filtered)

    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extractall", of_python_3_11_2)
    revision = prepare(commit(checkout, "old"), checkout, tmp_path / "cache")
    source = revision.python.parents[2] / "source"
    assert "old" in (source / "hpsbench" / "models" / "build.py").read_text()


def test_the_whole_project_is_taken_from_any_folder_of_its_checkout(
    checkout: Path, tmp_path: Path
) -> None:
    sha = commit(checkout, "first")
    source = prepare(sha, checkout / "hpsbench", tmp_path / "cache").python.parents[2] / "source"
    assert (source / "pyproject.toml").is_file()
    assert (source / "hpsbench" / "serving.py").is_file()


def test_compare_reads_the_revisions_of_this_project() -> None:
    assert (
        project_folder(compared_sides.CHECKOUT) / "hpsbench" / "commands" / "compare.py"
    ).is_file()


DEFAULTS = """
def default_variants(suite):
    named = lambda name: SimpleNamespace(name=name)
    return [named("hps_tf"), named("wide")], {"half": "no GPU"}
"""
FORECAST = """\
from types import SimpleNamespace

Memory = SimpleNamespace
def free_memory():
    return SimpleNamespace(host=100, gpu=None)

def forecast(suite, places, memory):
    assert (memory.host, memory.gpu) == (50, None)  # there are two servers
    fits = [place for place in places if place != ("wide", 64)]
    return SimpleNamespace(fits=fits, left_out={("wide", 64): "too large"})
"""
SIZED = """\
from types import SimpleNamespace

def load_suite(preset, overrides):
    return SimpleNamespace(load=SimpleNamespace(batch_sizes=(7, 64)))
"""


def offer(checkout: Path, tmp_path: Path, *batch_sizes: int, new: bool) -> Offer:
    commit(checkout, "first")
    package = checkout / "hpsbench"
    (package / "config.py").write_text(SIZED)
    variants = VARIANTS.replace('if names != ["hps_tf"]', "if names")
    (package / "models" / "variants.py").write_text(variants + DEFAULTS * new)
    if new:
        (package / "forecast.py").write_text(FORECAST)
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "offers")
    revision = prepare(git(checkout, "rev-parse", "HEAD"), checkout, tmp_path / "cache")
    return offered(revision, preset="smoke", overrides=[], folder=tmp_path, batch_sizes=batch_sizes)


def test_a_revision_offers_what_it_measures_here_and_has_memory_for_twice(
    checkout: Path, tmp_path: Path
) -> None:
    told = offer(checkout, tmp_path, new=True)
    assert told.places == (("hps_tf", 7), ("hps_tf", 64), ("wide", 7))
    assert told.left_out == {"half": "no GPU", "wide at batch size 64": "too large"}


def test_a_revision_from_before_the_forecast_offers_all_and_batch_sizes_may_be_chosen(
    checkout: Path, tmp_path: Path
) -> None:
    told = offer(checkout, tmp_path, 3, new=False)
    assert told == Offer(places=(("hps_tf", 3),), left_out={})


def test_an_environment_is_made_once_and_again_if_it_was_interrupted(
    checkout: Path, tmp_path: Path
) -> None:
    sha = commit(checkout, "first")
    python = prepare(sha, checkout, tmp_path / "cache").python
    made_ns = (python.parents[1] / "pyvenv.cfg").stat().st_mtime_ns
    assert prepare(sha, checkout, tmp_path / "cache").python == python
    assert (python.parents[1] / "pyvenv.cfg").stat().st_mtime_ns == made_ns
    (python.parents[2] / "ready").unlink()
    prepare(sha, checkout, tmp_path / "cache")
    assert (python.parents[1] / "pyvenv.cfg").stat().st_mtime_ns != made_ns
    assert git(checkout, "status", "--porcelain") == ""


def test_other_dependencies_are_installed_and_not_shared(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = commit(checkout, "old", dependencies='["numpy<1"]')
    commit(checkout, "new")
    commands: list[list[str]] = []

    def run(command: list[str], *_: object, **__: object) -> str:
        commands.append(command)
        return ""

    monkeypatch.setattr(revisions, "_run", run)
    monkeypatch.setattr(revisions.venv, "create", lambda *_, **__: None)
    python = prepare(old, checkout, tmp_path / "cache").python
    source = python.parents[2] / "source"
    ((*install, what),) = commands
    assert install == [str(python), "-m", "pip", "install", "-q", "--editable"]
    assert what in (f"{source}[cpu]", f"{source}[gpu]")


def test_what_a_revision_cannot_build_is_told_in_its_own_words(
    checkout: Path, tmp_path: Path
) -> None:
    sha = commit(checkout, "first")
    revision = prepare(sha, checkout, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"ValueError: unknown variant \['native_tf'\]") as caught:
        build_models(
            revision,
            preset="smoke",
            places=[("native_tf", 3)],
            overrides=[],
            folder=tmp_path / "models",
        )
    assert caught.value.problem.startswith(f"revision {sha[:12]} cannot build 'native_tf':")


def test_a_commit_that_is_no_hpsbench_or_is_not_there_is_an_error(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / "README").touch()
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "empty")
    with pytest.raises(ConfigError, match="holds no hpsbench"):
        prepare(git(checkout, "rev-parse", "HEAD"), checkout, tmp_path / "cache")
    with pytest.raises(ConfigError, match="git cannot read revision"):
        prepare("0" * 40, checkout, tmp_path / "cache")
