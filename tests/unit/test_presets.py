"""A preset is TOML, and what is wrong with it is told with where it stands and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpsbench.errors import ConfigError
from hpsbench.presets import load_suite, preset_names

WHOLE = "[tables]\nnum_embeddings = 9\n[load]\nbatch_sizes = [1, 2]\n"


def test_every_preset_of_the_package_is_a_suite() -> None:
    assert {"smoke", "laptop", "criteo", "fusion-8", "fusion-100"} == set(preset_names())
    for name in preset_names():
        assert load_suite(name).preset == name


def test_a_file_is_a_preset_that_options_change(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE)
    suite = load_suite(str(path), ["load.measure_s=3", "load.keys=zipf", "load.batch_sizes=[7]"])
    assert suite.preset == "mine"
    assert suite.tables.num_embeddings == 9
    # An integer where a float stands, a bare word and a list.
    assert (suite.load.measure_s, suite.load.keys, suite.load.batch_sizes) == (3.0, "zipf", (7,))
    assert suite.fusion is None


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("[tables", "is no TOML", "mend that line"),
        ("\xe4", "is no text", "UTF-8"),
        (WHOLE + "[lode]\n", "unknown section 'lode'", "did you mean load"),
        (WHOLE + "[hps]\nmodul = 'x'\n", "unknown field hps.modul", "did you mean hps.module"),
        ("tables = 1\n[load]\nbatch_sizes = [1]\n", "tables is 1", r"write \[tables\]"),
        ("[load]\nbatch_sizes = [1]\n", "tables.num_embeddings is missing", "--set tables"),
        (WHOLE + "[dlrm]\n[fusion]\nnum_tables = 2\n", "describes two models", "leave one"),
        (WHOLE + "[gate]\nstrict = 1\n", "gate.strict is 1", "write true or false"),
        (WHOLE.replace("[1, 2]", "[1, 2.5]"), "load.batch_sizes is", "list of integers"),
        (WHOLE.replace("[1, 2]", "[1, 1]"), "load.batch_sizes is", "preset file"),
        (WHOLE + "also_keys = [1]\n", "load.also_keys is", "list of strings"),
    ],
)
def test_what_is_wrong_in_a_preset_is_told(
    tmp_path: Path, text: str, problem: str, hint: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=problem) as raised:
        load_suite(str(path))
    assert raised.match(hint)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_suite(str(tmp_path / "none.toml"))
