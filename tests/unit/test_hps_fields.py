"""Every field of the parameter server's JSON file: written and read back, and refused by name."""

import dataclasses
import json
import math
import types
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench import hps
from hpsbench.errors import HpsError
from hpsbench.hps.configuration import (
    Configuration,
    ModelConfiguration,
    PersistentDatabase,
    UpdateSource,
    VolatileDatabase,
    parse_configuration,
)

MODEL = {
    "model": "dlrm",
    "sparse_files": ["a", "b"],
    "embedding_vecsize_per_table": [16, 128],
    "maxnum_catfeature_query_per_table_per_sample": [2, 26],
    "default_value_for_each_table": [0.0, 1.0],
    "deployed_device_list": [0],
    "embedding_table_names": ["first", "second"],
}
SECTIONS = {
    "volatile_db": (VolatileDatabase, {"type": "redis_cluster"}),
    "persistent_db": (PersistentDatabase, {"type": "rocks_db"}),
    "update_source": (UpdateSource, {"type": "disabled"}),
}
WRONG_VALUES = {
    bool: [0, "true", None, []],
    int: [1.0, "1", None, True, [1]],
    float: ["0.5", None, False, [0.5]],
    str: [1, None, True, ["a"]],
    tuple: ["a", 1, None, {}, [None], [{}]],
    dict: [1, "a", None, []],
}


def document(path=(), value=None):
    """Return JSON of a sound configuration, in which one field, or a field in it, is `value`."""
    whole = {
        "supportlonglong": True,
        "models": [dict(MODEL)],
        **{name: dict(values) for name, (_, values) in SECTIONS.items()},
    }
    if path:
        inner = whole
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
    return json.dumps(whole)


def kind_of(hint):
    if isinstance(hint, types.UnionType):
        return kind_of(typing.get_args(hint)[0])
    if dataclasses.is_dataclass(hint):
        return dict
    return tuple if typing.get_origin(hint) is tuple else hint


def fields():
    """Yield each field: where it stands, its type and its rule."""
    for steps, cls in (
        ((), Configuration),
        (("models", 0), ModelConfiguration),
        *(((name,), cls) for name, (cls, _) in SECTIONS.items()),
    ):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            yield pytest.param(
                (*steps, field.name), kind_of(hints[field.name]), field.metadata,
                id=".".join(map(str, (*steps, field.name))),
            )  # fmt: skip


FIELDS = tuple(fields())


def shown(path):
    return ".".join(map(str, path)).replace(".0.", "[0].")


def assert_refused(path, value):
    with pytest.raises(HpsError) as caught:
        parse_configuration(document(path, value), "ps.json")
    assert f"configuration ps.json: {shown(path)}" in caught.value.problem, value
    assert caught.value.hint.startswith("it must be ")


@pytest.mark.parametrize(("path", "kind", "rule"), FIELDS)
def test_a_value_of_the_wrong_type_is_refused_by_the_fields_name(path, kind, rule):
    for value in WRONG_VALUES[kind]:
        assert_refused(path, value)


@pytest.mark.parametrize(("path", "kind", "rule"), FIELDS)
def test_a_value_against_its_rule_is_refused_by_the_fields_name(path, kind, rule):
    wrong = []
    if "choices" in rule:
        wrong.append("none of them")
    if "low" in rule:
        wrong.append(rule["low"] - 1)
        if rule["high"] != math.inf:
            wrong.append(rule["high"] + 1)
    for value in wrong:
        assert_refused(path, int(value) if kind is int else value)


@given(value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=4,
), path=st.sampled_from([p.values[0] for p in FIELDS]))  # fmt: skip
def test_whatever_a_field_holds_it_is_read_or_refused_by_its_section(path, value):
    refusal = None
    try:
        parse_configuration(document(path, value), "ps.json")
    except HpsError as error:
        refusal = error.problem
    # A field may be refused because of another, which is of the same section.
    assert refusal is None or (
        refusal.startswith("configuration ps.json: ") and shown(path).rpartition(".")[0] in refusal
    )


names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)


def values_of(cls, fixed):
    """Draw keywords of `cls`: each field anything that its rule allows, but those in `fixed`."""
    hints = typing.get_type_hints(cls)
    drawn = {}
    for field in dataclasses.fields(cls):
        if field.name in fixed:
            drawn[field.name] = fixed[field.name]
            continue
        low, high = field.metadata.get("low"), field.metadata.get("high")
        kind = kind_of(hints[field.name])
        if "choices" in field.metadata:
            drawn[field.name] = st.sampled_from(field.metadata["choices"])
        elif kind is bool:
            drawn[field.name] = st.booleans()
        elif kind is int:
            drawn[field.name] = st.integers(low, None if high == math.inf else high)
        elif kind is float:
            drawn[field.name] = st.floats(
                low, None if high == math.inf else high, allow_nan=False, allow_infinity=False
            )
        elif kind is str:
            drawn[field.name] = st.text(max_size=10)
    return st.fixed_dictionaries(drawn)


@st.composite
def models(draw):
    count = draw(st.integers(1, 4))

    def per_table(items):
        return st.lists(items, min_size=count, max_size=count).map(tuple)

    fixed = {
        "model": names,
        "sparse_files": per_table(st.text(max_size=10)),
        "embedding_vecsize_per_table": per_table(st.integers(1, 512)),
        "maxnum_catfeature_query_per_table_per_sample": per_table(st.integers(1, 100)),
        "default_value_for_each_table": per_table(st.floats(-1e30, 1e30)),
        "deployed_device_list": st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple),
        "embedding_table_names": st.lists(
            names, min_size=count, max_size=count, unique=True
        ).map(tuple),
        "fp8_quant": st.just(False),
        "use_static_table": st.just(False),
    }  # fmt: skip
    return ModelConfiguration(**draw(values_of(ModelConfiguration, fixed)))


FILTERS = {"update_filters": st.lists(st.sampled_from(["^hps_.+$", "table[01]"])).map(tuple)}
near_caches = values_of(
    VolatileDatabase,
    {**FILTERS, "type": st.just("hash_map"), "address": st.just("a:1"), "near_cache": st.none()},
).map(lambda values: VolatileDatabase(**values))
volatile_databases = values_of(
    VolatileDatabase,
    {
        **FILTERS, "type": st.just("redis_cluster"),
        "address": st.sampled_from(["a:1", "10.0.0.1:7000,b", "::1:70"]),
        "near_cache": st.none() | near_caches,
    },
).map(lambda values: VolatileDatabase(**values))  # fmt: skip
persistent_databases = values_of(
    PersistentDatabase, {**FILTERS, "type": st.sampled_from(["rocks_db", "disabled"])}
).map(lambda values: PersistentDatabase(**values))


@given(
    models=st.lists(models(), min_size=1, max_size=2, unique_by=lambda m: m.model).map(tuple),
    supportlonglong=st.booleans(),
    fuse_embedding_table=st.booleans(),
    volatile_db=st.none() | volatile_databases,
    persistent_db=st.none() | persistent_databases,
)
def test_any_configuration_is_read_back_as_it_was_written(tmp_path_factory, **values):
    configuration = Configuration(**values)
    path = tmp_path_factory.mktemp("written") / "ps.json"
    assert hps.write_configuration(path, configuration) == path
    assert hps.read_configuration(path) == configuration
