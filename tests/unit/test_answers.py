"""Two sides' answers: how far apart, and what is too far."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpsbench.duets.answers import AnswerDifference, answer_difference
from hpsbench.load.client import Tensor


def difference(ours: Tensor, theirs: Tensor, tolerance: float = 1e-3) -> AnswerDifference:
    return answer_difference([{"y": ours}], [{"y": theirs}], tolerance=tolerance)


def test_equal_answers_are_the_same_whatever_they_are() -> None:
    for values in ([1.0, math.nan, math.inf], [1, 2], [b"a", b"b"], [True, False]):
        array = np.array(values, dtype=object if isinstance(values[0], bytes) else None)
        found = difference(array, array.copy())
        assert found.problem is None
        assert found.text == "answers are the same (1 request)"


def test_a_difference_is_relative_above_one_and_absolute_below() -> None:
    large = difference(np.array([1000.0]), np.array([1000.5]))
    assert (large.absolute, large.relative, large.problem) == (0.5, 0.0005, None)
    small = difference(np.array([0.0001]), np.array([0.0021]))
    assert small.problem == "by 0.002 at most, relative 0.002, where 0.001 is allowed"
    assert difference(np.array([0.0001]), np.array([0.0021]), math.inf).problem is None


@pytest.mark.parametrize(
    ("theirs", "problem"),
    [
        (np.ones((2, 1), np.float32), "float32 [1, 2] -> float32 [2, 1]"),
        (np.ones((1, 2), np.float64), "float32 [1, 2] -> float64 [1, 2]"),
        (np.array([[1.0, np.nan]], np.float32), "values that are no finite numbers"),
        (np.array([[1.0, -np.inf]], np.float32), "values that are no finite numbers"),
    ],
)
def test_other_shapes_types_and_numbers_that_are_none_are_too_far(
    theirs: Tensor, problem: str
) -> None:
    found = difference(np.ones((1, 2), np.float32), theirs, math.inf)
    assert found.problem == f"request 1, output y: {problem}"


def test_one_infinity_is_not_the_other() -> None:
    found = difference(np.array([np.inf, np.nan]), np.array([-np.inf, np.nan]), math.inf)
    assert found.problem is not None


def test_other_outputs_and_texts_are_too_far() -> None:
    one = {"y": np.ones(1)}
    found = answer_difference([one, one], [one, {**one, "z": np.ones(1)}])
    assert found.problem == "request 2 has other outputs: y -> y, z"
    texts = (np.array([word], dtype=object) for word in (b"yes", b"no"))
    assert difference(*texts).text == "answers differ: request 1, output y: other values"
