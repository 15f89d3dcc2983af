"""The workflows of docs/ci.md: whole files, whose commands and options exist."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpsbench import cli
from hpsbench.presets import preset_names
from tests.unit.test_documentation import pytest_options

yaml = pytest.importorskip("yaml", reason="pip install pyyaml, as `tox run -e tests` does")

ROOT = Path(__file__).parents[2]
WORKFLOWS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "ci.md").read_text(), re.M | re.S)
#: pytest's own that the recipes use.
PYTEST_OPTIONS = {*pytest_options(), "--junitxml"}
KEYS_OF_A_STEP = {"uses", "with", "run", "if", "env"}


def commands_in(value: Any) -> Iterator[str]:
    """Yield the shell lines of a workflow: what stands below `run`, `script` or `before_script`."""
    if isinstance(value, list):
        for item in value:
            yield from commands_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("run", "script", "before_script"):
                for text in [item] if isinstance(item, str) else item:
                    yield from text.splitlines()
            else:
                yield from commands_in(item)


COMMANDS = [line for text in WORKFLOWS for line in commands_in(yaml.safe_load(text))]


def words_of(line: str, program: str) -> list[str]:
    """Return the arguments of a program, with what CI fills in made up."""
    line = re.split(r"\s(?:\|\|?|&&)\s", line)[0] if not line.startswith("python3") else line
    line = re.sub(r"\$\{\{[^}]*\}\}|\$\w+", "main", line)
    words = shlex.split(line)
    return words[words.index(program) + 1 :]


def lines_with(program: str) -> list[str]:
    return [line for line in COMMANDS if program in line.split()]


def test_there_are_three_workflows_for_github_and_one_for_gitlab() -> None:
    kinds = ["jobs" if "jobs" in yaml.safe_load(text) else "stages" for text in WORKFLOWS]
    assert kinds == ["jobs", "jobs", "jobs", "stages"]
    # YAML 1.1, which GitHub does not speak, takes the key `on` for true.
    assert all({"name", True, "jobs"} <= yaml.safe_load(text).keys() for text in WORKFLOWS[:3])


def test_every_github_job_has_a_runner_a_limit_and_steps_that_are_steps() -> None:
    for text in WORKFLOWS[:3]:
        for job in yaml.safe_load(text)["jobs"].values():
            assert {"runs-on", "timeout-minutes", "steps"} <= job.keys()
            for step in job["steps"]:
                assert step.keys() <= KEYS_OF_A_STEP
                assert ("uses" in step) != ("run" in step)
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/x@v1"))


def test_every_gitlab_job_has_a_script_and_known_parents() -> None:
    jobs = {
        name: job
        for name, job in yaml.safe_load(WORKFLOWS[3]).items()
        if name not in ("stages", "variables")
    }
    for name, job in jobs.items():
        assert name.startswith(".") or {"extends", "script", "tags", "rules"} <= job.keys()
        assert job.get("extends", ".benchmark") in jobs
    assert {"merge-request", "nightly-cpu", "nightly-gpu", "accept-baseline"} <= jobs.keys()


@pytest.mark.parametrize("line", lines_with(".tox/bench/bin/hpsbench"))
def test_every_command_of_hpsbench_is_one(line: str) -> None:
    given = cli.build_parser().parse_args(words_of(line, ".tox/bench/bin/hpsbench"))
    assert callable(given.command)
    if getattr(given, "preset", None):
        assert given.preset in preset_names()


@pytest.mark.parametrize("line", lines_with(".venv/bin/tox"))
def test_every_environment_of_tox_and_option_of_pytest_is_one(line: str) -> None:
    ours, _, theirs = " ".join(words_of(line, ".venv/bin/tox")).partition(" -- ")
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    words = ours.split()
    assert words[:2] == ["run", "-e"]
    assert f"testenv:{words[2]}" in tox
    assert set(words[3:]) <= {"--notest"}
    options = [word for word in theirs.split() if word.startswith("--")]
    assert set(options) <= PYTEST_OPTIONS
    presets = re.findall(r"--preset (\S+)", theirs)
    assert set(presets) <= set(preset_names())


def test_every_recipe_measures_and_pull_requests_are_gated_on_all_variants() -> None:
    compared = [line for line in lines_with(".tox/bench/bin/hpsbench") if " compare " in line]
    assert len(compared) == 2
    for line in compared:
        given = cli.build_parser().parse_args(words_of(line, ".tox/bench/bin/hpsbench"))
        assert (given.model, given.batch_size, given.preset) == (None, None, "smoke")
        assert given.junit is not None
    assert len(lines_with(".tox/bench/bin/hpsbench")) >= 6
    assert len(lines_with(".venv/bin/tox")) >= 8
