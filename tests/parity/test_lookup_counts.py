"""Served models tell what their lookups asked of each tier: as many keys as requests carried."""

from __future__ import annotations

import time

import pytest

from hpsbench.servers.statistics import LookupCount
from hpsbench.serving import ServedVariants, request_batches

pytestmark = pytest.mark.server

BATCH_SIZE = 7
#: Longer than models wait between telling (`lookup_metrics.INTERVAL_S`).
UNTIL_TOLD_S = 0.7


def host_count(served: ServedVariants, variant: str) -> LookupCount:
    return served.lookups()[variant]["host table"]


def test_every_key_of_every_request_is_counted(served: ServedVariants) -> None:
    suite = served.build.suite
    looking_up = [v for v in served.build.variants if v.name.startswith("hps_")]
    assert len(looking_up) >= 2
    for variant in looking_up:
        with served.client(variant, request_batches(suite, BATCH_SIZE)) as client:
            client.send()
            time.sleep(UNTIL_TOLD_S)
            client.send()
            before = host_count(served, variant.name)
            for _ in range(3):
                client.send()
            time.sleep(UNTIL_TOLD_S)
            client.send()
            counted = host_count(served, variant.name) - before
        keys = 4 * BATCH_SIZE * suite.dlrm.num_slots
        # Without a GPU's cache above it, the host is asked for all of them, and has them.
        assert counted.keys <= keys, variant.name
        assert counted.hits == counted.keys, variant.name
        tiers = served.lookups()[variant.name]
        if len(tiers) == 1:
            assert counted.keys == keys, variant.name


def test_variants_without_a_parameter_server_tell_nothing(served: ServedVariants) -> None:
    assert not [name for name in served.lookups() if name.startswith("native_tf")]
