"""What a machine cannot hold is left out by name, the largest first, and the reference last."""

from __future__ import annotations

import pytest

from hpsbench.errors import ConfigError
from hpsbench.forecast import GIB, Memory, Place, forecast, gpu_bytes, host_bytes, require
from hpsbench.presets import load_suite
from hpsbench.workload import row_of

CRITEO = load_suite("criteo")
VARIANTS = ("native_tf", "native_tf_hybrid", "hps_tf", "hps_ensemble")
PLACES = [(variant, size) for size in CRITEO.load.batch_sizes for variant in VARIANTS]
ROWS_GIB = CRITEO.tables.num_bytes / GIB


def fits(host_gib: float, gpu_gib: float | None = None) -> tuple[set[str], set[int], set[str]]:
    memory = Memory(
        host=round(host_gib * GIB), gpu=None if gpu_gib is None else round(gpu_gib * GIB)
    )
    found = forecast(CRITEO, PLACES, memory)
    assert {*found.fits, *found.left_out} == set(PLACES)
    return {v for v, _ in found.fits}, {b for _, b in found.fits}, set(found.left_out.values())


def test_a_large_machine_holds_all() -> None:
    assert fits(128, 80) == (set(VARIANTS), set(CRITEO.load.batch_sizes), set())


def test_the_largest_batch_sizes_go_first() -> None:
    variants, sizes, reasons = fits(128, 36)
    assert variants == set(VARIANTS)
    assert max(sizes) == 32768
    assert (
        "up to batch 131072 with 4 variants it would need about 51.0 GiB of GPU memory, "
        "and 36.0 GiB are free" in reasons
    )


def test_variants_go_only_when_no_batch_size_is_left_to_go() -> None:
    assert fits(3 * ROWS_GIB + 4)[:2] == ({"native_tf", "native_tf_hybrid", "hps_tf"}, {32})
    assert fits(40)[:2] == ({"native_tf", "native_tf_hybrid"}, {32})
    assert fits(30)[:2] == ({"native_tf"}, {32})


def test_the_reference_stays_and_is_refused_by_itself() -> None:
    found = forecast(CRITEO, PLACES, Memory(host=8 * GIB))
    assert found.fits == (("native_tf", 32),)
    with pytest.raises(ConfigError, match=r"preset criteo is too large for this machine: up to "):
        require(CRITEO, found.fits, Memory(host=8 * GIB))
    require(CRITEO, PLACES, Memory(host=128 * GIB, gpu=80 * GIB))


def test_other_keys_need_no_more_processes() -> None:
    both = [*PLACES, *((row_of(v, "zipf"), size) for v, size in PLACES)]
    assert host_bytes(CRITEO, both, on_gpu=True) == host_bytes(CRITEO, PLACES, on_gpu=True)
    assert gpu_bytes(CRITEO, both) == gpu_bytes(CRITEO, PLACES)


def test_what_is_not_asked_for_needs_nothing() -> None:
    def needed(*variants: str) -> float:
        places: list[Place] = [(v, 32) for v in variants]
        return host_bytes(CRITEO, places, on_gpu=False) / GIB

    assert needed("native_tf") == pytest.approx(ROWS_GIB + 1.1, abs=0.1)
    # It is compared with native_tf, which is served too.
    assert needed("hps_tf") > 2 * ROWS_GIB
    assert needed("hps_tf", "hps_ensemble") < 2 * ROWS_GIB + 4
