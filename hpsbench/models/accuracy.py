"""The accuracy gate: a float16 model must answer as its float32 original, or is not served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import scipy.stats

from hpsbench.errors import AccuracyError
from hpsbench.models.onnx import OUTPUT, VECTORS, producer, with_every_value
from hpsbench.models.onnx_engine import EngineOptions, OnnxEngine

#: In probability. Rounding every value to float16 costs DLRM some 2e-4.
MAX_ABSOLUTE_ERROR = 2e-3
#: Of the float32 AUC. Source: MLPerf Inference, the 99.9% quality target of DLRM.
MIN_AUC_SHARE = 0.999
#: Samples that are asked.
SAMPLES = 2048
_HINT = "leave the variant out (--variants), or serve the model in float32: hps_onnx_fp32"

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How float16 answered beside float32, over `samples`; errors are in probability."""

    samples: int
    max_absolute_error: float
    mean_absolute_error: float
    float32_auc: float
    float16_auc: float


def check_accuracy(
    single: onnx.ModelProto,
    half: onnx.ModelProto,
    vectors: FloatArray,
    numerical: FloatArray,
    *,
    seed: int,
) -> Accuracy:
    """Return how `half` answers beside `single`, on the CPU, rounding after every node.

    `vectors` is float32[n, slots, dim], `numerical` float32[n, features]; the labels that the AUC
    counts are drawn, by `seed`, with the probabilities that float32 gives. Raises AccuracyError
    where a node gives infinity or NaN, naming the first that does; where an answer is further off
    than MAX_ABSOLUTE_ERROR; and where the AUC is less than MIN_AUC_SHARE of what it was.
    """
    expected = _answers(single, vectors, numerical)[OUTPUT]
    values = _answers(with_every_value(half), vectors.astype(np.float16), numerical)
    _check_finite(half, values)
    given = values[OUTPUT]
    labels = np.random.default_rng(seed).random(expected.shape) < expected
    error = np.abs(given - expected)
    accuracy = Accuracy(
        samples=len(expected),
        max_absolute_error=float(error.max()),
        mean_absolute_error=float(error.mean()),
        float32_auc=auc(expected, labels),
        float16_auc=auc(given, labels),
    )
    _judge(accuracy)
    return accuracy


def auc(scores: FloatArray, labels: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: how often a positive is scored above a negative.

    Ties count half. Raises ValueError where all labels are the same.
    """
    scores, labels = scores.ravel(), labels.ravel()
    positives = int(labels.sum())
    negatives = labels.size - positives
    if not positives or not negatives:
        raise ValueError("an AUC needs labels of both kinds")
    ranks = scipy.stats.rankdata(scores)
    above = ranks[labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def _answers(
    model: onnx.ModelProto, vectors: npt.NDArray[Any], numerical: FloatArray
) -> dict[str, FloatArray]:
    engine = OnnxEngine(model.SerializeToString(), EngineOptions())
    numerical_name = next(name for name in engine.inputs if name != VECTORS)
    return cast("dict[str, FloatArray]", engine.run({VECTORS: vectors, numerical_name: numerical}))


def _check_finite(model: onnx.ModelProto, values: dict[str, FloatArray]) -> None:
    for name, value in values.items():
        if value.dtype.kind != "f" or np.isfinite(value).all():
            continue
        what = "NaN" if np.isnan(value).any() else "infinity"
        count = value.size - np.isfinite(value).sum()
        raise AccuracyError(
            f"in float16, {producer(model, name)} gives {what} in {count} of {value.size} values; "
            "every node before it is finite",
            hint=_HINT,
        )


def _judge(accuracy: Accuracy) -> None:
    off = accuracy.max_absolute_error
    if not off <= MAX_ABSOLUTE_ERROR:
        raise AccuracyError(
            f"float16 answers up to {off:.2g} off float32, over {accuracy.samples} samples; "
            f"the limit is {MAX_ABSOLUTE_ERROR:g}",
            hint=_HINT,
        )
    if not accuracy.float16_auc >= MIN_AUC_SHARE * accuracy.float32_auc:
        raise AccuracyError(
            f"float16 has an AUC of {accuracy.float16_auc:.4f}, float32 of "
            f"{accuracy.float32_auc:.4f}; the limit is {MIN_AUC_SHARE:.1%} of that",
            hint=_HINT,
        )
