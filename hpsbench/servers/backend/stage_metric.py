"""Where a model's time goes, told to clients as a metric of Triton's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from hpsbench.servers.statistics import STAGE_METRIC


class StageMetric:
    """`hpsbench_stage_ns{model="hps_onnx_fp16",stage="lookup"} 123456`, summed over requests."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._family = pb_utils.MetricFamily(
            name=STAGE_METRIC,
            description="Nanoseconds inside each model, by stage",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._metrics: dict[str, Any] = {}

    def add(self, stage_ns: Mapping[str, int]) -> None:
        """Add one request's stages; takes a call to Triton for each."""
        for stage, nanoseconds in stage_ns.items():
            if stage not in self._metrics:
                labels = {"model": self._model, "stage": stage}
                self._metrics[stage] = self._family.Metric(labels=labels)
            self._metrics[stage].increment(nanoseconds)
