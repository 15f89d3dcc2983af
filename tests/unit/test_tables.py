from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench.config import TableConfig
from hpsbench.tables import (
    BLOCK_ROWS,
    embedding_rows,
    histogram_stream,
    key_stream,
    recorded_stream,
    row_blocks,
)

TABLE = TableConfig(num_embeddings=2 * BLOCK_ROWS + 100, embedding_dim=4)


def test_blocks_are_the_whole_table_in_order() -> None:
    table = np.concatenate(list(row_blocks(TABLE)))
    assert table.shape == (TABLE.num_embeddings, 4)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, embedding_rows(TABLE, np.arange(TABLE.num_embeddings)))


@given(st.lists(st.integers(0, TABLE.num_embeddings - 1), max_size=20))
def test_rows_of_any_keys_equal_the_table(keys: list[int]) -> None:
    table = np.concatenate(list(row_blocks(TABLE)))
    np.testing.assert_array_equal(embedding_rows(TABLE, keys), table[keys])


@pytest.mark.parametrize("dim", [4, 128])
def test_the_dot_product_of_two_rows_has_unit_variance(dim: int) -> None:
    rows = next(row_blocks(TableConfig(num_embeddings=10_000, embedding_dim=dim)))
    products = np.einsum("ij,ij->i", rows[::2], rows[1::2])
    assert products.var() == pytest.approx(1.0, rel=0.1)
    assert products.mean() == pytest.approx(0.0, abs=0.05)


def test_another_seed_is_another_table() -> None:
    other = TableConfig(num_embeddings=10, embedding_dim=4, seed=1)
    same = TableConfig(num_embeddings=10, embedding_dim=4, seed=1)
    third = TableConfig(num_embeddings=10, embedding_dim=4, seed=2)
    np.testing.assert_array_equal(next(row_blocks(other)), next(row_blocks(same)))
    assert not np.array_equal(next(row_blocks(other)), next(row_blocks(third)))


@pytest.mark.parametrize("key", [-1, TABLE.num_embeddings])
def test_a_key_outside_the_table_is_refused(key: int) -> None:
    with pytest.raises(IndexError, match="keys must be in"):
        embedding_rows(TABLE, [key])


@pytest.mark.parametrize("kind", ["repeated", "uniform", "zipf", "hot"])
@pytest.mark.parametrize("rows", [1, 7, 1000, 32_709_138])
def test_every_stream_stays_inside_the_table_and_is_seeded(kind: str, rows: int) -> None:
    first = list(itertools.islice(key_stream(kind, (5, 26), rows, seed=3), 3))
    again = list(itertools.islice(key_stream(kind, (5, 26), rows, seed=3), 3))
    for batch, same in zip(first, again, strict=True):
        assert batch.shape == (5, 26)
        assert batch.min() >= 0
        assert batch.max() < rows
        np.testing.assert_array_equal(batch, same)


def test_only_the_repeated_stream_repeats() -> None:
    for kind, repeats in [("repeated", True), ("uniform", False), ("zipf", False), ("hot", False)]:
        a, b = itertools.islice(key_stream(kind, (64,), 100_000, seed=0), 2)
        assert np.array_equal(a, b) == repeats, kind


def test_zipf_popularity_falls_with_its_exponent() -> None:
    keys = next(key_stream("zipf", (200_000,), 10_000, seed=0, zipf_alpha=1.2))
    counts = np.sort(np.bincount(keys, minlength=10_000))[::-1]
    # The continuous law gives rank k the mass of [k, k + 1).
    edges = np.arange(1.0, 10_002.0) ** -0.2
    mass = (edges[:-1] - edges[1:]) / (edges[0] - edges[-1])
    assert counts[0] / 200_000 == pytest.approx(mass[0], rel=0.05)
    assert counts[:100].sum() / 200_000 == pytest.approx(mass[:100].sum(), rel=0.05)


def test_nine_in_ten_hot_keys_come_from_a_hundredth_of_the_table() -> None:
    keys = next(key_stream("hot", (100_000,), 10_000, seed=0))
    counts = np.sort(np.bincount(keys, minlength=10_000))[::-1]
    assert counts[:100].sum() / 100_000 == pytest.approx(0.901, abs=0.01)


def test_the_hot_keys_are_as_many_and_as_hot_as_asked() -> None:
    stream = key_stream("hot", (100_000,), 10_000, seed=0, hot_share=0.5, hot_keys=3)
    counts = np.sort(np.bincount(next(stream), minlength=10_000))[::-1]
    assert counts[:3].sum() / 100_000 == pytest.approx(0.5, abs=0.01)
    assert counts[3] < 50


def test_keys_of_a_histogram_come_as_often_as_counted() -> None:
    counts = [0, 6, 0, 3, 1, 0]
    stream = histogram_stream(counts, (200, 100), seed=4)
    drawn = next(stream)
    assert drawn.shape == (200, 100)
    shares = np.bincount(drawn.ravel(), minlength=6) / drawn.size
    np.testing.assert_allclose(shares, np.array(counts) / 10, atol=0.02)
    assert set(np.flatnonzero(shares)) == {1, 3, 4}
    assert not np.array_equal(next(stream), drawn)
    np.testing.assert_array_equal(next(histogram_stream(counts, (200, 100), seed=4)), drawn)


@pytest.mark.parametrize("counts", [[], [0, 0], [1, -1], [[1]], [float("nan"), 1]], ids=str)
def test_a_histogram_without_a_key_is_refused(counts: object) -> None:
    with pytest.raises(ValueError, match="counts must be"):
        next(histogram_stream(counts, (3,), seed=0))  # type: ignore[arg-type]


def test_recorded_keys_come_in_their_order_and_again() -> None:
    stream = recorded_stream([5, -2, 9, 2**60, 7], (1, 3))
    batches = [batch.tolist() for batch in itertools.islice(stream, 4)]
    assert batches == [[[5, -2, 9]], [[2**60, 7, 5]], [[-2, 9, 2**60]], [[7, 5, -2]]]
    with pytest.raises(ValueError, match="no recorded key"):
        next(recorded_stream([], (3,)))
