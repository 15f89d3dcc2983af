"""How long until every variant answers: tables written, models exported, Triton started."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpsbench.models.build import build_repository
from hpsbench.models.variants import select_variants
from hpsbench.presets import load_suite
from hpsbench.serving import served_variants

pytestmark = pytest.mark.server

LIMIT_S = 20.0


def test_three_variants_of_the_laptop_preset_are_ready_in_time(
    work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun_s = time.monotonic()
    variants = select_variants(["native_tf", "hps_tf", "hps_ensemble"])
    build = build_repository(load_suite("laptop"), variants, work_folder / "ready")
    built_s = time.monotonic()
    with served_variants(build, log=work_folder / "ready.log"):
        ready_s = time.monotonic()
    with capsys.disabled():
        print(
            f"\ntables and models written in {built_s - begun_s:.1f} s, "
            f"ready after {ready_s - begun_s:.1f} s"
        )
    assert ready_s - begun_s <= LIMIT_S
