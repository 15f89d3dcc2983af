"""The rooms stand in a row, and a module imports only from its own room or one to its left."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hpsbench

PACKAGE = Path(hpsbench.__file__).parent

#: From left to right; modules in one entry share a room.
ROOMS = (
    ("errors",),
    ("config",),
    ("presets",),
    ("compiler", "machine", "workspace", "storage", "workload", "revisions"),
    ("tables",),
    ("hps",),
    ("models",),
    ("servers",),
    ("load",),
    ("telemetry_host", "telemetry_gpu"),
    ("stats", "telemetry"),
    ("ratios",),
    ("session_change",),
    ("profiling",),
    ("stages", "load_curve"),
    ("attribution",),
    ("measurements",),
    ("session", "load_session"),
    ("checkpoint", "forecast"),
    ("serving",),
    ("baselines",),
    ("verdict",),
    ("runs", "baseline_check"),
    ("duets", "load_results"),
    ("published", "reproduction"),
    ("figures",),
    ("report",),
    ("gate",),
    ("options",),
    ("commands",),
    ("session_state", "session_fixtures"),
    ("plugin", "cli"),
)
POSITION = {name: index for index, room in enumerate(ROOMS) for name in room}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "hpsbench" and len(parts) > 1 else None


def imported_rooms(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            module = node.module or ""
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return {room for name in names if (room := room_of(name)) in POSITION}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_to_its_left(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in POSITION, f"{room} has no place in the row of rooms"
    to_the_right = {r for r in imported_rooms(path) if POSITION[r] > POSITION[room]}
    assert not to_the_right, f"{room} imports from {sorted(to_the_right)}"


def test_the_package_never_imports_fixtures_or_tests() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("fixtures", "tests"), path
