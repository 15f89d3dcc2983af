"""Every field of a preset and of the parameter server's JSON file is documented."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hpsbench import config
from hpsbench.hps import configuration

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = {
    "tables": config.TableConfig,
    "dlrm": config.DlrmConfig,
    "fusion": config.FusionConfig,
    "load": config.LoadConfig,
    "servers": config.ServerConfig,
    "hps": config.HpsConfig,
    "gate": config.GateConfig,
    "open_loop": config.OpenLoopConfig,
}
JSON_OBJECTS = (
    configuration.Configuration,
    configuration.ModelConfiguration,
    configuration.VolatileDatabase,
    configuration.PersistentDatabase,
    configuration.UpdateSource,
)


def test_the_sections_are_those_of_a_suite() -> None:
    assert [f.name for f in dataclasses.fields(config.Suite) if f.name != "preset"] == [
        "tables", "load", "dlrm", "fusion", "servers", "hps", "gate", "open_loop",
    ]  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
def test_every_preset_field_is_documented_with_its_default(section: str) -> None:
    text = (DOCS / "configuration.md").read_text("utf-8")
    part = text.split(f"## `[{section}]`")[1].split("\n## ")[0]
    rows = dict(line.split(" | ", 1) for line in part.splitlines() if line.startswith("| `"))
    fields = dataclasses.fields(SECTIONS[section])
    assert list(rows) == [f"| `{f.name}`" for f in fields]
    for field in fields:
        default = rows[f"| `{field.name}`"].split(" | ")[0].strip("`")
        required = field.default is dataclasses.MISSING
        assert default == ("required" if required else _toml(field.default))


@pytest.mark.parametrize("kind", JSON_OBJECTS, ids=lambda kind: kind.__name__)
def test_every_field_of_the_json_file_is_documented(kind: type) -> None:
    text = (DOCS / "parameter-server.md").read_text("utf-8")
    assert not [f.name for f in dataclasses.fields(kind) if f"`{f.name}`" not in text]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value)) if isinstance(value, tuple) else str(value)
