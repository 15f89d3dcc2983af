"""Git revisions of this package, each in a cached environment that builds its own models."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock

from hpsbench.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_INSTALL_TIMEOUT_S = 1800
_BUILD_TIMEOUT_S = 1800
_QUOTED_LINES = 10
#: Environments that are kept for good, and how long others are after their last use. No comparison
#: takes as long, so that none in use is removed.
_KEPT = 5
_KEPT_S = 14 * 24 * 3600.0
#: Run in the revision's environment, so they use nothing but what every revision has.
_LOAD_SUITE = """\
import json, sys
try:
    from hpsbench.presets import load_suite
except ImportError:  # a revision that read them in its configuration
    from hpsbench.config import load_suite

preset, given, *overrides = sys.argv[1:]
given, suite = json.loads(given), load_suite(preset, overrides)
"""
_BUILD = (
    _LOAD_SUITE
    + """\
import base64
from pathlib import Path
import numpy as np
from hpsbench.models.build import build_repository
from hpsbench.models.variants import select_variants
from hpsbench.serving import request_batches

folder, places = Path(given["folder"]), given["places"]
names = list(dict.fromkeys(name for name, _ in places))
variants = {variant.name: variant for variant in select_variants(names)}
build = build_repository(suite, list(variants.values()), folder)

def entry(tensor):
    content = np.ascontiguousarray(tensor).tobytes()
    return {"b64": base64.b64encode(content).decode("ascii"), "shape": list(tensor.shape)}

files = []
for name, size in places:
    batches = request_batches(suite, size)
    inputs = variants[name].inputs
    requests = [{n: entry(t) for n, t in inputs(batch).items()} for batch in batches]
    files.append(str(folder / f"requests-{name}-b{size}.json"))
    Path(files[-1]).write_text(json.dumps({"data": requests}))
models = list(dict.fromkeys(model for v in variants.values() for model in v.models))
print(json.dumps({"repository": str(build.repository.root), "requests": files, "models": models}))
"""
)
_OFFER = (
    _LOAD_SUITE
    + """\
try:
    from hpsbench.models.variants import default_variants
    variants, left_out = default_variants(suite)
except ImportError:  # a revision that measured all of them everywhere
    from hpsbench.models.variants import select_variants
    variants, left_out = select_variants([]), {}
sizes = given["batch_sizes"] or suite.load.batch_sizes
places = [(variant.name, size) for variant in variants for size in sizes]
try:
    from hpsbench.forecast import Memory, forecast, free_memory
except ImportError:  # a revision that forecast whole presets
    pass
else:
    free = free_memory()
    half = Memory(host=free.host // 2, gpu=None if free.gpu is None else free.gpu // 2)
    told = forecast(suite, places, half)
    places = told.fits
    left_out |= {f"{name} at batch size {size}": why for (name, size), why in told.left_out.items()}
print(json.dumps({"places": places, "left_out": left_out}))
"""
)

#: A variant and a batch size.
Place: TypeAlias = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A commit and the interpreter of the environment in which its code runs."""

    commit: str
    python: Path


@dataclass(frozen=True, kw_only=True)
class BuiltModels:
    """A Triton model repository that a revision wrote, and the models to load out of it.

    `requests` are files of the requests of each place, as perf_analyzer's `--input-data` has them;
    each entry is a whole request.
    """

    repository: Path
    requests: Mapping[Place, Path]
    models: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a revision measures of a preset on this machine, and why it leaves other things out."""

    places: tuple[Place, ...]
    left_out: Mapping[str, str]


def find_commit(name: str, checkout: Path) -> str | None:
    """Return the commit that `name` means in a git checkout, None where it means none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def project_folder(folder: Path) -> Path:
    """Return the folder with the project's `pyproject.toml`: this one, or the nearest around it."""
    around = (folder, *folder.parents)
    return next((path for path in around if (path / "pyproject.toml").is_file()), folder)


def prepare(commit: str, checkout: Path, cache_dir: Path) -> Revision:
    """Return a commit's environment, made on first use below `cache_dir`.

    `checkout` is the project's folder, or one in it. The environment shares the installed packages
    where the commit depends on the same ones as the project does now, and installs its own where
    not. Others that were not used for two weeks are removed, but for the five used last. Raises
    ConfigError with pip's or git's words where it cannot be.
    """
    checkout = project_folder(checkout)
    cache_dir.mkdir(parents=True, exist_ok=True)
    _prune(cache_dir)
    # What is shared belongs to the environment that runs now.
    ours = hashlib.sha256(f"{sys.prefix} {sys.version}".encode()).hexdigest()[:8]
    folder = cache_dir / f"{commit}-{ours}"
    ready = folder / "ready"
    with FileLock(cache_dir / f"{folder.name}.lock"):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _extract(commit, checkout, folder / "source")
            _make_environment(folder, checkout)
        ready.touch()  # by which the last use is known
    return Revision(commit=commit, python=folder / "environment" / "bin" / "python")


def offered(
    revision: Revision,
    *,
    preset: str,
    overrides: Sequence[str],
    folder: Path,
    batch_sizes: Sequence[int] = (),
) -> Offer:
    """Return the variants of a preset that the revision measures here, at each batch size.

    The batch sizes are the preset's unless given; two servers of them must fit into the memory.
    Raises ConfigError with that code's last words where it cannot tell.
    """
    told = _told_by(
        revision,
        _OFFER,
        preset,
        {"batch_sizes": list(batch_sizes)},
        overrides,
        f"revision {revision.commit[:12]} does not tell what preset {preset!r} measures",
        folder,
    )
    return Offer(
        places=tuple((name, size) for name, size in told["places"]), left_out=told["left_out"]
    )


def build_models(
    revision: Revision,
    *,
    preset: str,
    places: Sequence[Place],
    overrides: Sequence[str],
    folder: Path,
) -> BuiltModels:
    """Return the model repository, and the requests, of variants as the revision writes them.

    Raises ConfigError with that code's last words where it cannot.
    """
    names = ", ".join(repr(name) for name in dict.fromkeys(name for name, _ in places))
    built = _told_by(
        revision,
        _BUILD,
        preset,
        {"folder": str(folder), "places": list(places)},
        overrides,
        f"revision {revision.commit[:12]} cannot build {names}",
        folder.parent,
    )
    return BuiltModels(
        repository=Path(built["repository"]),
        requests=dict(zip(places, map(Path, built["requests"]), strict=True)),
        models=tuple(built["models"]),
    )


def _told_by(
    revision: Revision,
    program: str,
    preset: str,
    given: Mapping[str, Any],
    overrides: Sequence[str],
    problem: str,
    folder: Path,
) -> dict[str, Any]:
    """Return what a program that the revision's interpreter runs prints last, as JSON."""
    command = [str(revision.python), "-c", program, preset, json.dumps(given), *overrides]
    told: dict[str, Any] = json.loads(_run(command, problem, folder).splitlines()[-1])
    return told


def _prune(cache_dir: Path) -> None:
    """Remove environments that were not used lately, but for the few that were used last."""
    used = {ready.parent: ready.stat().st_mtime for ready in cache_dir.glob("*/ready")}
    for folder in sorted(used, key=used.__getitem__, reverse=True)[_KEPT:]:
        if time.time() - used[folder] > _KEPT_S:
            with FileLock(cache_dir / f"{folder.name}.lock"):
                shutil.rmtree(folder, ignore_errors=True)


def _extract(commit: str, checkout: Path, folder: Path) -> None:
    # An archive, rather than a worktree, leaves nothing behind in the user's repository.
    done = subprocess.run(
        ["git", "-C", str(checkout), "archive", "--format=tar", commit],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise ConfigError(
            f"git cannot read revision {commit}: {done.stderr.decode(errors='replace').strip()}",
            hint="fetch it: a shallow clone has only the newest",
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        # Python 3.10 and 3.11 have filters since their last bug fixes; Debian 12's is older.
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)


def _make_environment(folder: Path, checkout: Path) -> None:
    source, environment = folder / "source", folder / "environment"
    if _dependencies(source) == _dependencies(checkout):
        venv.create(environment, symlinks=True)
        # Earlier on the path wins, and .pth files below an added folder are not read: so the
        # revision's package hides the one that is installed.
        packages = environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        installed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (packages / "hpsbench_revision.pth").write_text("\n".join([str(source), *installed]) + "\n")
        return
    venv.create(environment, symlinks=True, with_pip=True)
    python = environment / "bin" / "python"
    _run(
        [str(python), "-m", "pip", "install", "-q", "--editable", f"{source}[{_extra()}]"],
        f"cannot install revision {folder.name[:12]}",
        folder,
        timeout_s=_INSTALL_TIMEOUT_S,
    )


def _dependencies(source: Path) -> Any:
    try:
        project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{source} holds no hpsbench: {error}",
            hint="run hpsbench out of its git checkout, and name a revision that has it",
        ) from error
    return project.get("dependencies"), project.get("optional-dependencies")


def _extra() -> str:
    from importlib import metadata

    try:
        metadata.version("tensorflow-cpu")
    except metadata.PackageNotFoundError:
        return "gpu"
    return "cpu"


def _run(
    command: Sequence[str], problem: str, folder: Path, timeout_s: int = _BUILD_TIMEOUT_S
) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{problem} within {timeout_s} s", hint="try a smaller preset") from error
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-_QUOTED_LINES:])
        raise ConfigError(
            f"{problem}:\n{last}",
            hint="does that revision have this preset and variant, under these names?",
        )
    return done.stdout
