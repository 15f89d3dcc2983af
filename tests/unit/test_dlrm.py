from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench.config import DlrmConfig, TableConfig
from hpsbench.models.dlrm import (
    PUBLISHED_KEYS,
    DlrmWeights,
    Layer,
    forward,
    interaction_pairs,
    numerical_features,
    published_request,
    seeded_weights,
)


def test_the_published_shape_has_351_pairs_and_479_inputs_to_the_top() -> None:
    weights = seeded_weights(DlrmConfig(), 128)
    assert interaction_pairs(26) == 351
    assert [layer.kernel.shape for layer in weights.bottom] == [(13, 512), (512, 256), (256, 128)]
    assert [layer.kernel.shape for layer in weights.top] == [
        (479, 1024), (1024, 1024), (1024, 512), (512, 256), (256, 1),
    ]  # fmt: skip


def test_a_forward_pass_by_hand() -> None:
    # One slot, width 2: the one pair is the dot product of the dense vector and the embedding.
    identity = Layer(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    top = Layer(np.array([[1.0], [10.0], [100.0]], np.float32), np.array([-120.0], np.float32))
    vectors = np.array([[[3.0, 4.0]]], np.float32)
    numerical = np.array([[0.25, -9.0]], np.float32)  # ReLU leaves 0.25, 0
    logit = 0.25 + 10 * 0 + 100 * (0.25 * 3) - 120
    answer = forward(DlrmWeights((identity,), (top,)), vectors, numerical)
    np.testing.assert_allclose(answer, [[1 / (1 + np.exp(-logit))]], rtol=1e-6)


def test_extreme_logits_stay_probabilities() -> None:
    identity = Layer(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    vectors, numerical = np.zeros((2, 1, 2), np.float32), np.array([[1, 0], [0, 1]], np.float32)
    top = Layer(np.array([[1e4], [-1e4], [0]], np.float32), np.zeros(1, np.float32))
    with np.errstate(all="raise", under="ignore"):
        answer = forward(DlrmWeights((identity,), (top,)), vectors, numerical)
    np.testing.assert_array_equal(answer, [[1.0], [0.0]])


@given(st.integers(1, 6), st.integers(1, 5))
def test_samples_do_not_touch_each_other(batch: int, slots: int) -> None:
    dlrm = DlrmConfig(num_slots=slots, num_numerical=3, bottom_mlp=(4,), top_mlp=(5, 1))
    weights = seeded_weights(dlrm, 4)
    generator = np.random.default_rng(batch * 10 + slots)
    vectors = generator.standard_normal((batch, slots, 4), np.float32)
    numerical = generator.standard_normal((batch, 3), np.float32)
    whole = forward(weights, vectors, numerical)
    alone = [forward(weights, vectors[i : i + 1], numerical[i : i + 1]) for i in range(batch)]
    np.testing.assert_allclose(whole, np.concatenate(alone), rtol=1e-5)


def test_the_published_request_keeps_its_keys_at_full_scale_and_folds_them_below() -> None:
    full = published_request(TableConfig(num_embeddings=32_709_138))
    assert tuple(full.categorical[0]) == PUBLISHED_KEYS
    small = published_request(TableConfig(num_embeddings=1000))
    assert tuple(small.categorical[0]) == tuple(k % 1000 for k in PUBLISHED_KEYS)
    assert full.numerical.shape == (1, 13)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_numerical_features_are_seeded_logs(batch_size: int) -> None:
    features = numerical_features(batch_size, 13, seed=1)
    assert features.shape == (batch_size, 13)
    assert features.min() >= 0
    np.testing.assert_array_equal(features, numerical_features(batch_size, 13, seed=1))
