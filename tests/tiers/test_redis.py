"""Redis as a tier: a node, one with a password, with TLS, and a cluster; shared, and bounded."""

import contextlib
import logging
import subprocess
import sys

import numpy as np
import pytest

from hpsbench.errors import HpsError
from hpsbench.hps.tiers import redis_client
from tests.tiers.redis_server import redis_cluster, redis_server, write_certificates
from tests.tiers.served_tables import (
    DIMS,
    NUM_KEYS,
    Truth,
    open_tables,
    table_keys,
    table_rows,
    write_tables,
)


def section(address, **options):
    return {"type": "redis_cluster", "address": address, "num_partitions": 4, **options}


def assert_served_by_redis(tables):
    """Look all keys up, and see that Redis alone had them."""
    for table in range(len(DIMS)):
        keys = table_keys(table)
        np.testing.assert_array_equal(tables.lookup(table, keys), table_rows(table))
        facts = tables.statistics()[f"table{table}"]["tiers"]
        assert (facts["redis"]["hits"], facts["mapped"]["hits"]) == (NUM_KEYS, 0)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return write_certificates(tmp_path_factory.mktemp("certificates"))


def test_one_node(tmp_path):
    with redis_server(tmp_path) as server:
        with contextlib.closing(open_tables(tmp_path, volatile_db=section(server.address))) as m:
            assert_served_by_redis(m)
        names = server.command("keys", "*").split()
        assert len(names) == 4 * len(DIMS)
        assert all(name.startswith("{hps_et.m.table") for name in names)
        assert server.fields() == NUM_KEYS * len(DIMS)


def test_an_address_that_is_dead_is_passed_over_for_one_that_lives(tmp_path):
    with redis_server(tmp_path) as server:
        both = f"127.0.0.1:1,{server.address}"
        with contextlib.closing(open_tables(tmp_path, volatile_db=section(both))) as tables:
            assert_served_by_redis(tables)


def test_a_password_is_needed_and_enough(tmp_path):
    with redis_server(tmp_path, "--requirepass", "secret") as server:
        right = section(server.address, password="secret")
        with contextlib.closing(open_tables(tmp_path, volatile_db=right)) as tables:
            assert_served_by_redis(tables)
        for wrong in ({}, {"password": "guess"}, {"password": "secret", "user_name": "nobody"}):
            with pytest.raises(HpsError, match="refuses this process") as caught:
                open_tables(tmp_path, volatile_db=section(server.address, **wrong))
            assert "user_name, password" in caught.value.hint


@pytest.fixture
def tls(tmp_path, certificates):
    options = [
        word
        for option, name in (
            ("cert-file", "server.crt"), ("key-file", "server.key"), ("ca-cert-file", "ca.crt")
        )
        for word in (f"--tls-{option}", certificates[name])
    ]  # fmt: skip
    with redis_server(tmp_path, *options, tls=True) as server:
        yield section(
            server.address, enable_tls=True, tls_ca_certificate=certificates["ca.crt"],
            tls_client_certificate=certificates["client.crt"],
            tls_client_key=certificates["client.key"],
            tls_server_name_identification="redis.test",
        )  # fmt: skip


def test_tls_with_certificates_on_both_sides(tmp_path, tls):
    with contextlib.closing(open_tables(tmp_path, volatile_db=tls)) as tables:
        assert_served_by_redis(tables)


def test_a_server_of_another_name_is_refused(tmp_path, tls):
    tls["tls_server_name_identification"] = "other.test"
    with pytest.raises(HpsError, match=r"refuses this process.*CERTIFICATE_VERIFY_FAILED"):
        open_tables(tmp_path, volatile_db=tls)


def test_a_server_of_another_authority_is_refused(tmp_path, tls):
    other = write_certificates(tmp_path / "other")
    tls["tls_ca_certificate"] = other["ca.crt"]
    with pytest.raises(HpsError, match=r"refuses this process.*CERTIFICATE_VERIFY_FAILED"):
        open_tables(tmp_path, volatile_db=tls)


@pytest.mark.parametrize(
    "field", ["tls_ca_certificate", "tls_client_certificate", "tls_client_key"]
)
def test_a_tls_file_that_is_not_there_is_named(tmp_path, field):
    wrong = section("127.0.0.1:1", enable_tls=True, **{field: "/no/such.pem"})
    for other in {"tls_ca_certificate", "tls_client_certificate", "tls_client_key"} - {field}:
        wrong[other] = ""
    with pytest.raises(HpsError, match=f"volatile_db.{field} is '/no/such.pem'"):
        open_tables(tmp_path, volatile_db=wrong)


def test_a_cluster_of_three_nodes(tmp_path):
    with redis_cluster(tmp_path) as nodes:
        address = nodes[1].address  # the others are found
        with contextlib.closing(open_tables(tmp_path, volatile_db=section(address))) as tables:
            assert_served_by_redis(tables)
            assert [node.fields() > 0 for node in nodes] == [True] * 3
            keys = np.concatenate([table_keys(0)[:50], [10**15, -(10**15)]])
            rows = np.random.default_rng(0).random((52, DIMS[0]), np.float32)
            tables.update(0, keys, rows)
            np.testing.assert_array_equal(tables.lookup(0, keys), rows)
        assert sum(node.fields() for node in nodes) == NUM_KEYS * len(DIMS) + 2


def test_a_node_of_a_cluster_may_die(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(redis_client, "TIMEOUT_S", 0.2)
    truth = Truth()
    with redis_cluster(tmp_path) as nodes:
        chosen = section(",".join(n.address for n in nodes))
        with contextlib.closing(open_tables(tmp_path, volatile_db=chosen)) as tables:
            nodes[2].kill()
            for _ in range(5):
                for table in range(len(DIMS)):
                    keys = table_keys(table)
                    np.testing.assert_array_equal(
                        tables.lookup(table, keys), truth.answer(table, keys)
                    )
    assert sum(r.levelno == logging.WARNING for r in caplog.records) == 1


def test_several_processes_share_rows_and_updates(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from hpsbench.hps.lookup import open_model\n"
        "tables = open_model(sys.argv[1], 'm')\n"
        "assert tables.statistics()['table0']['tiers']['redis']['inserted'] == 0\n"
        "print(tables.lookup(0, [int(sys.argv[2])]).tolist())\n"
        "tables.update(0, [int(sys.argv[2])], np.full((1, 4), 8, np.float32))\n"
        "tables.close()\n"
    )
    key = int(table_keys(0)[5])
    with redis_server(tmp_path) as server:
        chosen = section(server.address)
        with contextlib.closing(open_tables(tmp_path, volatile_db=chosen)) as tables:
            tables.update(0, [key], np.full((1, 4), 7, np.float32))
            result = subprocess.run(
                [sys.executable, "-c", program, write_tables(tmp_path, volatile_db=chosen),
                 str(key)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert result.stdout.strip() == "[[7.0, 7.0, 7.0, 7.0]]"
            np.testing.assert_array_equal(tables.lookup(0, [key]), [[8] * 4])


def test_only_the_first_process_loads(tmp_path):
    with redis_server(tmp_path) as server:
        chosen = section(server.address, initial_cache_rate=0.5)
        for inserted in (NUM_KEYS // 2, 0):
            with contextlib.closing(open_tables(tmp_path, volatile_db=chosen)) as tables:
                facts = tables.statistics()["table2"]["tiers"]["redis"]
                assert facts["inserted"] == inserted * len(DIMS)


def test_another_content_does_not_meet_the_rows_of_the_first(tmp_path):
    with redis_server(tmp_path) as server:
        chosen = section(server.address)
        open_tables(tmp_path, volatile_db=chosen).close()
        rows = np.fromfile(tmp_path / "table0" / "emb_vector", np.float32)
        rows[-1] += 1
        rows.tofile(tmp_path / "table0" / "emb_vector")
        with contextlib.closing(open_tables(tmp_path, volatile_db=chosen)) as tables:
            answer = tables.lookup(0, table_keys(0)[-1:])
            assert answer[0, -1] == rows[-1]
            assert tables.statistics()["table0"]["tiers"]["redis"]["hits"] == 1


def test_nothing_is_loaded_where_nothing_is_to_be(tmp_path):
    with redis_server(tmp_path) as server:
        chosen = section(server.address, initialize_after_startup=False)
        with contextlib.closing(open_tables(tmp_path, volatile_db=chosen)) as tables:
            tables.lookup(0, table_keys(0))
            assert server.fields() == 0
            assert tables.statistics()["table0"]["tiers"]["mapped"]["hits"] == NUM_KEYS


def test_missed_rows_are_inserted_where_they_are_to_be(tmp_path, wait_until):
    with redis_server(tmp_path) as server:
        chosen = section(
            server.address, initialize_after_startup=False, cache_missed_embeddings=True
        )
        with contextlib.closing(open_tables(tmp_path, volatile_db=chosen)) as tables:
            tables.lookup(0, [*table_keys(0)[:40], 1, 2, 3])
            wait_until(lambda: server.fields() == 40)
            tables.lookup(0, table_keys(0)[:40])
            assert tables.statistics()["table0"]["tiers"]["redis"]["hits"] == 40


def test_a_margin_bounds_each_partition(tmp_path):
    with redis_server(tmp_path) as server:
        chosen = section(server.address, overflow_margin=20, overflow_resolution_target=0.5)
        with contextlib.closing(open_tables(tmp_path, volatile_db=chosen)) as tables:
            for name in server.command("keys", "*").split():
                assert int(server.command("hlen", name)) <= 21
            facts = tables.statistics()["table0"]["tiers"]["redis"]
            assert facts["inserted"] - facts["evicted"] == server.fields()
            assert facts["evicted"] > 0
            for table in range(len(DIMS)):
                np.testing.assert_array_equal(
                    tables.lookup(table, table_keys(table)), table_rows(table)
                )


def test_a_value_of_another_size_is_no_row(tmp_path):
    with redis_server(tmp_path) as server:
        chosen = section(server.address, num_partitions=1)
        with contextlib.closing(open_tables(tmp_path, volatile_db=chosen)) as tables:
            for name in server.command("keys", "*table0*").split():
                program = "for _, f in ipairs(redis.call('hkeys', KEYS[1])) do " + (
                    "redis.call('hset', KEYS[1], f, 'short') end"
                )
                server.command("eval", program, "1", name)
            np.testing.assert_array_equal(tables.lookup(0, table_keys(0)), table_rows(0))


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(HpsError, match="redis_cluster needs the package redis") as caught:
        open_tables(tmp_path, volatile_db=section("127.0.0.1:1"))
    assert "pip install" in caught.value.hint
