"""The parameter server's JSON file: every field, its default, and what is said when it is wrong."""

import dataclasses
import json
import re

import pytest

from hpsbench.errors import HpsError
from hpsbench.hps import fields
from hpsbench.hps.configuration import (
    Configuration,
    ModelConfiguration,
    PersistentDatabase,
    UpdateSource,
    VolatileDatabase,
    parse_configuration,
    read_configuration,
    write_configuration,
)

MODEL = {
    "model": "dlrm",
    "sparse_files": ["a", "b"],
    "embedding_vecsize_per_table": [16, 128],
    "maxnum_catfeature_query_per_table_per_sample": [2, 26],
    "default_value_for_each_table": [0.0, 1],
    "deployed_device_list": [0],
}


def document(*, model=None, **top):
    """Return JSON of a sound configuration, changed; None leaves a field out."""
    changed = {**MODEL, **(model or {})}
    whole = {
        "supportlonglong": True,
        "models": [{k: v for k, v in changed.items() if v is not None}],
        **top,
    }
    return json.dumps({k: v for k, v in whole.items() if v is not None})


def parse(text):
    return parse_configuration(text, "ps.json")


@pytest.fixture(autouse=True)
def _warnings_come_again(monkeypatch):
    monkeypatch.setattr(fields, "_warned", set())


def test_a_short_file_has_the_documented_defaults():
    configuration = parse(document())
    assert not configuration.fuse_embedding_table
    assert configuration.volatile_db is configuration.persistent_db is None
    assert configuration.update_source is None
    model = configuration.models[0]
    assert model.default_value_for_each_table == (0.0, 1.0)
    defaults = dataclasses.asdict(model)
    assert {name: value for name, value in defaults.items() if name not in MODEL} == {
        "embedding_table_names": ("sparse_embedding0", "sparse_embedding1"),
        "max_batch_size": 64,
        "gpucache": True,
        "gpucacheper": 0.2,
        "hit_rate_threshold": 0.9,
        "num_of_worker_buffer_in_pool": 1,
        "num_of_refresher_buffer_in_pool": 1,
        "cache_refresh_percentage_per_iteration": 0.0,
        "thread_pool_size": 16,
        "embedding_cache_type": "dynamic",
        "use_static_table": False,
        "use_context_stream": True,
        "init_ec": True,
        "fuse_embedding_table": True,
        "enable_pagelock": False,
        "fp8_quant": False,
        "refresh_delay": 0.0,
        "refresh_interval": 0.0,
        "maxnum_des_feature_per_sample": 26,
        "dense_file": "",
        "network_file": "",
        "label_dim": 1,
        "slot_num": 1,
    }


def test_use_static_table_forces_the_static_cache():
    model = {"use_static_table": True, "embedding_cache_type": "uvm", "fp8_quant": True}
    assert parse(document(model=model)).models[0].embedding_cache_type == "static"


@pytest.mark.parametrize(
    ("top", "model", "fuses"),
    [(True, None, True), (True, False, False), (False, True, False), (None, True, False)],
)
def test_tables_are_fused_where_the_file_and_the_model_say_so(top, model, fuses):
    configuration = parse(document(fuse_embedding_table=top, model={"fuse_embedding_table": model}))
    assert configuration.fuses(configuration.models[0]) is fuses


WRONG_FIELDS = {
    "name": ({"model": "a/b"}, "models[0].model is 'a/b'",
             "letters, digits, _ and -, 1 to 120 of them"),
    "no name": ({"model": None}, "models[0].model is missing", "there; it is a string"),
    "no tables": ({"sparse_files": []}, "models[0].sparse_files is an empty list",
                  "one folder per table"),
    "tables no list": ({"sparse_files": "a"}, "models[0].sparse_files is 'a'",
                       "a list, each item a string"),
    "table no string": ({"sparse_files": ["a", 1]}, "models[0].sparse_files[1] is 1", "a string"),
    "sizes": ({"embedding_vecsize_per_table": [16]},
              "models[0].embedding_vecsize_per_table is [16]",
              "2 positive numbers, one for each of sparse_files"),
    "size zero": ({"embedding_vecsize_per_table": [16, 0]},
                  "models[0].embedding_vecsize_per_table is [16, 0]",
                  "2 positive numbers, one for each of sparse_files"),
    "hotness": ({"maxnum_catfeature_query_per_table_per_sample": [1, 2, 3]},
                "models[0].maxnum_catfeature_query_per_table_per_sample is [1, 2, 3]",
                "2 positive numbers, one for each of sparse_files"),
    "defaults": ({"default_value_for_each_table": [0, 0, 0]},
                 "models[0].default_value_for_each_table is [0.0, 0.0, 0.0]",
                 "2 numbers, one for each of sparse_files"),
    "names": ({"embedding_table_names": ["a"]}, "models[0].embedding_table_names is ['a']",
              "2 names, one for each of sparse_files"),
    "bad names": ({"embedding_table_names": ["a", ""]},
                  "models[0].embedding_table_names is ['a', '']",
                  "names of letters, digits, _ and -, 1 to 120 of them"),
    "equal names": ({"embedding_table_names": ["a", "a"]},
                    "models[0].embedding_table_names is ['a', 'a']", "names that differ"),
    "devices": ({"deployed_device_list": []}, "models[0].deployed_device_list is []",
                "a list of device numbers from 0"),
    "device": ({"deployed_device_list": [-1]}, "models[0].deployed_device_list is [-1]",
               "a list of device numbers from 0"),
    "max_batch_size": ({"max_batch_size": 0}, "models[0].max_batch_size is 0", "at least 1"),
    "float for int": ({"max_batch_size": 64.0}, "models[0].max_batch_size is 64.0",
                      "a whole number"),
    "gpucache": ({"gpucache": 1}, "models[0].gpucache is 1", "true or false"),
    "bool for int": ({"thread_pool_size": True}, "models[0].thread_pool_size is true",
                     "a whole number"),
    "init_ec": ({"init_ec": "yes"}, "models[0].init_ec is 'yes'",
             "true or false"),
    "gpucacheper": ({"gpucacheper": 1.5}, "models[0].gpucacheper is 1.5", "from 0.0 to 1.0"),
    "hit_rate_threshold": ({"hit_rate_threshold": -0.1}, "models[0].hit_rate_threshold is -0.1",
                           "at least 0.0"),
    "workers": ({"num_of_worker_buffer_in_pool": 0},
                "models[0].num_of_worker_buffer_in_pool is 0", "at least 1"),
    "refreshers": ({"num_of_refresher_buffer_in_pool": -1},
                   "models[0].num_of_refresher_buffer_in_pool is -1", "at least 0"),
    "refresh": ({"cache_refresh_percentage_per_iteration": 2},
                "models[0].cache_refresh_percentage_per_iteration is 2.0", "from 0.0 to 1.0"),
    "cache type": ({"embedding_cache_type": "Static"},
                   "models[0].embedding_cache_type is 'Static'", "one of dynamic, static, uvm"),
    "fp8": ({"fp8_quant": True}, "models[0].fp8_quant is true",
            'false unless embedding_cache_type is "static"'),
    "delay": ({"refresh_delay": -1}, "models[0].refresh_delay is -1.0", "at least 0.0"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "problem", "rule"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_a_wrong_field_of_a_model_is_named(model, problem, rule):
    with pytest.raises(HpsError) as caught:
        parse(document(model=model))
    assert str(caught.value) == f"configuration ps.json: {problem}\n  hint: it must be {rule}"


VOLATILE = "one of hash_map, parallel_hash_map, multi_process_hash_map, redis_cluster, disabled"
WRONG_FILES = {
    "key type missing": ({"supportlonglong": None}, "supportlonglong is missing",
                         "there; it is true or false"),
    "key type": ({"supportlonglong": "yes"}, "supportlonglong is 'yes'", "true or false"),
    "fuse": ({"fuse_embedding_table": 1}, "fuse_embedding_table is 1", "true or false"),
    "models missing": ({"models": None}, "models is missing",
                       "there; it is a list, each item an object: { ... }"),
    "no models": ({"models": []}, "models is an empty list", "a list of models"),
    "model no object": ({"models": ["dlrm"]}, "models[0] is 'dlrm'", "an object: { ... }"),
    "equal models": ({"models": [MODEL, MODEL]}, "models is ['dlrm', 'dlrm']",
                     "models whose names differ"),
    "volatile no object": ({"volatile_db": "hash_map"}, "volatile_db is 'hash_map'",
                           "an object: { ... }"),
    "volatile without type": ({"volatile_db": {}}, "volatile_db.type is missing",
                              "there; it is a string"),
    "volatile type": ({"volatile_db": {"type": "hashmap"}}, "volatile_db.type is 'hashmap'",
                      VOLATILE),
    "filter": ({"volatile_db": {"type": "hash_map", "update_filters": ["^hps_", "("]}},
               "volatile_db.update_filters is '('",
               "a list of regular expressions (missing ), unterminated subpattern at position 0)"),
    "address": ({"volatile_db": {"type": "redis_cluster", "address": "a:1,b:65536"}},
                "volatile_db.address is 'a:1,b:65536'",
                "host:port, or several of them and commas between"),
    "no address": ({"volatile_db": {"type": "redis_cluster", "address": " ,"}},
                   "volatile_db.address is ' ,'",
                   "host:port, or several of them and commas between"),
    "near_cache": ({"volatile_db": {"type": "hash_map", "near_cache": {"type": "hash_map"}}},
                   "volatile_db.near_cache is there", 'absent unless type is "redis_cluster"'),
    "near_cache type": ({"volatile_db": {"type": "redis_cluster",
                                         "near_cache": {"type": "redis_cluster"}}},
                        "volatile_db.near_cache.type is 'redis_cluster'",
                        "one of hash_map, parallel_hash_map, multi_process_hash_map"),
    "policy": ({"volatile_db": {"type": "hash_map", "overflow_policy": "lru"}},
               "volatile_db.overflow_policy is 'lru'",
               "one of evict_random, evict_least_used, evict_oldest"),
    "margin": ({"volatile_db": {"type": "hash_map", "overflow_margin": 2**64}},
               "volatile_db.overflow_margin is 18446744073709551616",
               "from 1 to 18446744073709551615"),
    "cache rate": ({"volatile_db": {"type": "hash_map", "initial_cache_rate": 1.01}},
                   "volatile_db.initial_cache_rate is 1.01", "from 0.0 to 1.0"),
    "persistent filter": ({"persistent_db": {"type": "rocks_db", "update_filters": ["["]}},
                          "persistent_db.update_filters is '['",
                          "a list of regular expressions (unterminated character set at position 0)"
                          ),
    "persistent type": ({"persistent_db": {"type": "sqlite"}}, "persistent_db.type is 'sqlite'",
                        "one of rocks_db, disabled"),
    "kafka": ({"update_source": {"type": "kafka_message_queue"}},
              "update_source.type is 'kafka_message_queue'",
              "another type: this one is not supported yet"),
}  # fmt: skip


@pytest.mark.parametrize(("top", "problem", "rule"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_field_of_the_file_is_named(top, problem, rule):
    with pytest.raises(HpsError) as caught:
        parse(document(**top))
    assert str(caught.value) == f"configuration ps.json: {problem}\n  hint: it must be {rule}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Expecting property name"),
        ('{"models": [], "models": []}', "'models' occurs twice"),
        ('{"supportlonglong": NaN}', "NaN is no number"),
    ],
)
def test_a_file_that_is_no_json_says_where(text, problem):
    with pytest.raises(HpsError, match=f"configuration ps.json is no JSON: {problem}"):
        parse(text)


def test_a_list_is_no_configuration():
    with pytest.raises(HpsError, match=re.escape("configuration ps.json: the file is []")):
        parse("[]")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(HpsError, match=r"configuration .*ps\.json cannot be read: No such file"):
        read_configuration(tmp_path / "ps.json")


def test_an_unknown_field_is_warned_of_once_with_the_nearest_name(caplog):
    text = document(fuse_embeding_table=True, model={"gpucache_per": 0.5, "zzz": 1})
    parse(text)
    parse(text)
    assert [record.getMessage() for record in caplog.records] == [
        "configuration ps.json: unknown field fuse_embeding_table is ignored; "
        "did you mean fuse_embedding_table?",
        "configuration ps.json: unknown field models[0].gpucache_per is ignored; "
        "did you mean gpucacheper?",
        "configuration ps.json: unknown field models[0].zzz is ignored",
    ]


def test_a_short_list_of_defaults_is_padded_with_a_warning(caplog):
    model = parse(document(model={"default_value_for_each_table": [0.25]})).models[0]
    assert model.default_value_for_each_table == (0.25, 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "model dlrm: default_value_for_each_table has 1 values for 2 tables; "
        "the others default to 0.0"
    ]


@pytest.mark.parametrize(
    "kind", ["hash_map", "parallel_hash_map", "multi_process_hash_map", "disabled"]
)
def test_a_hash_map_of_any_kind_is_the_host_table(kind):
    assert parse(document(volatile_db={"type": kind})).volatile_db == VolatileDatabase(type=kind)


def test_several_addresses_are_told_apart():
    section = parse(document(volatile_db={"type": "redis_cluster", "address": "a:1, b;c:70"}))
    assert section.volatile_db.addresses == (("a", 1), ("b", 6379), ("c", 70))


@pytest.mark.parametrize(
    ("limits", "bounded"),
    [({}, False), ({"initial_cache_rate": 0.5}, True), ({"overflow_margin": 10}, True)],
)
def test_a_hash_map_with_a_limit_is_bounded(limits, bounded):
    section = parse(document(volatile_db={"type": "hash_map", **limits})).volatile_db
    assert section.bounded is bounded


def test_what_is_written_is_read_back(tmp_path):
    configuration = Configuration(
        models=(
            ModelConfiguration(**{k: tuple(v) if isinstance(v, list) else v
                                  for k, v in MODEL.items()}, gpucache=False),
        ),
        supportlonglong=False,
        fuse_embedding_table=True,
        volatile_db=VolatileDatabase(type="hash_map", num_partitions=4),
        persistent_db=PersistentDatabase(type="disabled"),
        update_source=UpdateSource(type="disabled"),
    )  # fmt: skip
    path = write_configuration(tmp_path / "ps.json", configuration)
    assert read_configuration(path) == configuration
    written = json.loads(path.read_text())
    assert written["supportlonglong"] is False
    assert written["models"][0]["gpucache"] is False
    assert "max_batch_size" not in written["models"][0]


def test_a_model_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(HpsError, match="has no model 'wide'\n  hint: it has dlrm"):
        parse(document()).model("wide")


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (lambda: model(gpucacheper=5.0), "gpucacheper is 5.0"),
        (lambda: model(embedding_cache_type="dynamc"), "embedding_cache_type is 'dynamc'"),
        (lambda: model(model="dl rm"), "model is 'dl rm'"),
        (lambda: VolatileDatabase(type="hash_map", num_partitions=2**32), "num_partitions is 4"),
        (lambda: PersistentDatabase(type="rocks_db", num_threads=0), "num_threads is 0"),
        (lambda: UpdateSource(type="disabled", max_batch_size=0), "max_batch_size is 0"),
    ],
)
def test_a_configuration_that_code_makes_is_checked_as_one_that_is_read(section, problem):
    with pytest.raises(HpsError, match=problem) as caught:
        section()
    assert caught.value.hint.startswith("it must be ")


def model(**changed):
    return ModelConfiguration(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in {**MODEL, **changed}.items()}
    )


def test_a_document_nested_too_deep_is_refused() -> None:
    with pytest.raises(HpsError, match="no JSON"):
        parse_configuration("[" * 100_000, "ps.json")
