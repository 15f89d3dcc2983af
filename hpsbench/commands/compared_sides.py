"""The two sides of a comparison as the options name them, and what both are asked."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hpsbench import revisions, runs
from hpsbench.config import ServerConfig, environment
from hpsbench.duets.benchmarks import DuetBenchmark, benchmarks_of
from hpsbench.duets.decision import BASELINE, CANDIDATE
from hpsbench.duets.pairs import NAMES, Contender, contender
from hpsbench.duets.requests import OptionRequests, RequestSource, WrittenRequests
from hpsbench.errors import ConfigError
from hpsbench.revisions import BuiltModels, Place, Revision
from hpsbench.workspace import workspace

LOGS = runs.FOLDER.parent
#: Where git revisions of this package come from.
CHECKOUT = Path(__file__).parents[2]

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ComparedSides:
    """Both sides ready to be served, by name, and what they are asked."""

    contenders: Mapping[str, Contender]
    described: Mapping[str, str]
    benchmarks: tuple[DuetBenchmark, ...]
    requests: RequestSource

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are asked."""
        return tuple(dict.fromkeys(benchmark.model for benchmark in self.benchmarks))

    @property
    def fresh(self) -> bool:
        """Whether every launch starts both servers."""
        return not any(side.is_running for side in self.contenders.values())


def compared_sides(
    given: argparse.Namespace,
    *,
    models: Sequence[str],
    batch_sizes: Sequence[int],
    options: OptionRequests,
    config: ServerConfig,
    stack: ExitStack,
    say: Say,
) -> ComparedSides:
    """Return what `--baseline` and `--candidate` are; revisions are built below the stack's folder.

    Of two revisions, no `models` are all that both measure. Raises ConfigError.
    """
    sources = dict(zip(NAMES, (given.baseline, given.candidate), strict=True))
    commits = {name: commit_of(source) for name, source in sources.items()}
    logs = {name: LOGS / f"compare-{name}.log" for name in NAMES}
    if not any(commits.values()):
        _require_servers_only(given)
    if not models and not all(commits.values()):
        raise ConfigError(
            "--model is missing, and not both sides are git revisions, which have a preset",
            hint="name what to ask: --model hps_tf, or several: --model native_tf,hps_tf",
        )
    contenders = {
        name: contender(
            source,
            models=models,
            config=config,
            log=logs[name],
            neither="no folder, no URL and no git revision of hpsbench",
        )
        for name, source in sources.items()
        if commits[name] is None
    }
    places: Sequence[Place] = [(m, size) for m in models for size in batch_sizes or (1,)]
    builds: dict[str, BuiltModels] = {}
    if any(commits.values()):
        folder = stack.enter_context(workspace(environment().cache_dir / "work"))
        checkouts = _Checkouts(given, folder, say)
        prepared = {name: checkouts.prepare(sha) for name, sha in commits.items() if sha}
        if not models:
            places = checkouts.common_places(prepared, batch_sizes)
        for name, revision in prepared.items():
            builds[name] = checkouts.build(name, revision, places)
            contenders[name] = Contender(
                models=builds[name].models,
                repository=builds[name].repository,
                config=config,
                log=logs[name],
                python=revision.python,
            )
    for log in logs.values():
        _empty(log)
    benchmarks = benchmarks_of(places)
    requests: RequestSource = options
    if builds and not (given.shape or given.input_data):
        files = next(iter(builds.values())).requests
        requests = WrittenRequests(files={b: files[b.model, b.batch_size] for b in benchmarks})
    return ComparedSides(
        contenders={name: contenders[name] for name in NAMES},
        described={name: _described(source, commits[name]) for name, source in sources.items()},
        benchmarks=benchmarks,
        requests=requests,
    )


def commit_of(source: str) -> str | None:
    """Return the commit that a side names, None where it is a folder, a URL or nothing known."""
    if "://" in source or Path(source).is_dir():
        return None
    return revisions.find_commit(source, CHECKOUT)


class _Checkouts:
    """Git revisions, and what they build of one preset below a folder."""

    def __init__(self, given: argparse.Namespace, folder: Path, say: Say) -> None:
        from hpsbench.options import default_preset

        self._preset = given.preset or default_preset()
        self._overrides, self._folder, self._say = given.overrides, folder, say

    def prepare(self, commit: str) -> Revision:
        """Return a commit with its environment."""
        return revisions.prepare(commit, CHECKOUT, environment().cache_dir / "revisions")

    def common_places(
        self, prepared: Mapping[str, Revision], batch_sizes: Sequence[int]
    ) -> list[Place]:
        """Return what both measure here, and say what is left out."""
        offers = {
            name: revisions.offered(
                revision,
                preset=self._preset,
                overrides=self._overrides,
                folder=self._folder,
                batch_sizes=batch_sizes,
            )
            for name, revision in prepared.items()
        }
        reasons = {what: why for offer in offers.values() for what, why in offer.left_out.items()}
        for what, why in reasons.items():
            self._say(f"left out: {what}: {why}")
        ours, theirs = (offers[name].places for name in (BASELINE, CANDIDATE))
        for name, places, others in ((BASELINE, ours, theirs), (CANDIDATE, theirs, ours)):
            for variant, size in places:
                told = {variant, f"{variant} at batch size {size}"} & reasons.keys()
                if (variant, size) not in others and not told:
                    self._say(f"left out: {variant} at batch size {size}: only the {name} has it")
        common = [place for place in ours if place in theirs]
        if not common:
            raise ConfigError(
                f"the two revisions have nothing of preset {self._preset} in common that this "
                "machine measures",
                hint="choose another: --preset smoke",
            )
        return common

    def build(self, name: str, revision: Revision, places: Sequence[Place]) -> BuiltModels:
        """Return the models of these places as the revision writes them."""
        variants = ", ".join(dict.fromkeys(variant for variant, _ in places))
        self._say(f"building {variants} of revision {revision.commit[:12]}, preset {self._preset}")
        (self._folder / name).mkdir()
        return revisions.build_models(
            revision,
            preset=self._preset,
            places=places,
            overrides=self._overrides,
            folder=self._folder / name / "models",
        )


def _described(source: str, commit: str | None) -> str:
    return source if commit is None else f"{source} (revision {commit[:12]})"


def _require_servers_only(given: argparse.Namespace) -> None:
    others = [o for o in given.overrides if not o.strip().startswith("servers.")]
    if others or given.preset:
        option = f"--set {others[0]!r}" if others else f"--preset {given.preset}"
        raise ConfigError(
            f"{option}: only a git revision has a preset, and neither side is one",
            hint="for example --set servers.startup_timeout_s=600",
        )


def _empty(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
