"""What really runs a model, told to clients: a metric of Triton's with the words as its label."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from hpsbench.servers.statistics import ENGINE_METRIC

#: Whether Triton's own process runs the model, and no stub.
IN_PROCESS = pb_utils.__name__.startswith("hpsbench.")


class EngineMetric:
    """`hpsbench_engine{model="hps_onnx_fp16",engine="ONNX Runtime 1.31.1, CUDA"} 1`."""

    def __init__(self, model: str, description: str) -> None:
        family = pb_utils.MetricFamily(
            name=ENGINE_METRIC,
            description="What runs each model: libraries, device and modes",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        if IN_PROCESS:
            description += ", in process"
        self._metric = family.Metric(labels={"model": model, "engine": description})
        # Both are gone from Triton's page with the objects.
        self._family = family
        self._metric.set(1)
