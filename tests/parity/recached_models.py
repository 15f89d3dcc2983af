"""Served models whose parameter server is configured otherwise, beside each other in one Triton."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpsbench.hps.configuration import read_configuration, write_configuration

#: Each of the GPU caches that a configuration can ask for. All answer with the rows that there
#: are: a part of the rows is below the `hit_rate_threshold`, which presets set to 1, until no row
#: misses.
CACHES: Mapping[str, Mapping[str, Any]] = {
    "part": {"gpucacheper": 0.2},
    "whole": {"gpucacheper": 1.0},
    "static": {"embedding_cache_type": "static"},
    "uvm": {"embedding_cache_type": "uvm", "gpucacheper": 0.3},
}
_CONFIG_FILE = re.compile(r'"([^"]+\.json)"')


def copy_models(
    repository: Path,
    models: Sequence[str],
    suffix: str,
    options: Mapping[str, Any],
    *,
    into: Path | None = None,
) -> dict[str, str]:
    """Copy models of a repository, with other `options` in their parameter server's configuration.

    Returns the new names by the old; what models say of each other, as an ensemble of its steps,
    is renamed with them. `into` is another repository.
    """
    names = {model: f"{model}_{suffix}" for model in models}
    for model, name in names.items():
        target = (into or repository) / name
        shutil.copytree(repository / model, target, copy_function=os.link)
        config = target / "config.pbtxt"
        text = config.read_text()
        for old, new in names.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        text = _CONFIG_FILE.sub(lambda found: f'"{_changed(found[1], suffix, options)}"', text)
        _replace(config, text.encode())
        for saved in target.rglob("saved_model.pb"):
            _replace(saved, _with_configuration(saved.read_bytes(), suffix, options))
    return names


def _changed(config_file: str, suffix: str, options: Mapping[str, Any]) -> str:
    """Write a configuration with other options of its models beside it; return its path."""
    path = Path(config_file)
    configuration = read_configuration(path)
    models = tuple(dataclasses.replace(model, **options) for model in configuration.models)
    changed = path.with_name(f"{path.stem}-{suffix}.json")
    return str(write_configuration(changed, dataclasses.replace(configuration, models=models)))


def _with_configuration(saved_model: bytes, suffix: str, options: Mapping[str, Any]) -> bytes:
    """Return a SavedModel whose lookups name the changed configuration."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString(saved_model)
    for graph in saved.meta_graphs:
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                if node.op.startswith("Hps"):
                    named = node.attr["ps_config_file"]
                    named.s = _changed(named.s.decode(), suffix, options).encode()
    return bytes(saved.SerializeToString())


def _replace(path: Path, content: bytes) -> None:
    path.unlink()  # it is a link to the original's
    path.write_bytes(content)
