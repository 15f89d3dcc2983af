"""Sparse-model folders: written whole or not at all, and never read past what they hold."""

import re
import time

import numpy as np
import pytest

from hpsbench.errors import TableError
from hpsbench.hps.sparse_model import open_sparse_model, write_sparse_model

KEYS = np.array([5, -1, 7, 2**62])
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def folder(tmp_path):
    return write_sparse_model(tmp_path / "table", KEYS, [ROWS])


def test_what_is_written_in_blocks_is_read_back(tmp_path):
    folder = write_sparse_model(tmp_path / "new" / "table", KEYS, iter([ROWS[:1], ROWS[1:]]))
    model = open_sparse_model(folder, 3)
    np.testing.assert_array_equal(model.keys, KEYS)
    np.testing.assert_array_equal(model.rows, ROWS)
    assert not model.rows.flags.writeable
    assert (folder / "key").read_bytes() == KEYS.tobytes()
    assert (folder / "emb_vector").read_bytes() == ROWS.tobytes()


def test_keys_and_rows_of_other_types_are_converted(tmp_path):
    folder = write_sparse_model(
        tmp_path / "table", KEYS[:3].astype(np.int32), [ROWS[:3, ::2].astype(np.float64)]
    )
    model = open_sparse_model(folder, 2)
    np.testing.assert_array_equal(model.keys, KEYS[:3])
    np.testing.assert_array_equal(model.rows, ROWS[:3, ::2])


def test_a_folder_that_is_there_is_replaced_whole(folder):
    (folder / "stale").touch()
    write_sparse_model(folder, [1], [ROWS[:1]])
    assert sorted(path.name for path in folder.iterdir()) == ["emb_vector", "key"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["table"]
    np.testing.assert_array_equal(open_sparse_model(folder, 3).keys, [1])


@pytest.mark.parametrize(
    ("keys", "blocks", "problem"),
    [
        (KEYS, [ROWS[:3]], "4 keys, and 3 rows"),
        (KEYS, [ROWS, ROWS], "4 keys, and 8 rows"),
        (KEYS, [ROWS[:2], ROWS[2:, :2]], "a block is float32[2, 2]"),
        (KEYS, [ROWS.ravel()], "a block is float32[12]"),
        (KEYS, [ROWS.astype(int)], "a block is int64[4, 3]"),
        (KEYS.astype(float), [ROWS], "keys are float64[4]"),
        (KEYS.reshape(2, 2), [ROWS], "keys are int64[2, 2]"),
    ],
)
def test_a_failed_write_leaves_the_old_folder_and_nothing_else(folder, keys, blocks, problem):
    with pytest.raises(TableError, match=re.escape(f"sparse model {folder}: {problem}")):
        write_sparse_model(folder, keys, blocks)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["table"]
    np.testing.assert_array_equal(open_sparse_model(folder, 3).rows, ROWS)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def blocks():
        yield ROWS[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sparse_model(tmp_path / "table", KEYS, blocks())
    assert list(tmp_path.iterdir()) == []


def test_a_cut_row_file_is_refused_with_both_sizes(folder):
    with (folder / "emb_vector").open("r+b") as file:
        file.truncate(40)
    with pytest.raises(TableError) as caught:
        open_sparse_model(folder, 3)
    assert str(caught.value) == (
        f"sparse model {folder}: emb_vector has 40 bytes, and 4 keys x 3 float32 are 48\n"
        "  hint: write the folder again if it was cut, or mend the embedding vector size"
    )


def test_another_vector_size_is_refused(folder):
    with pytest.raises(TableError, match="has 48 bytes, and 4 keys x 4 float32 are 64"):
        open_sparse_model(folder, 4)


@pytest.mark.parametrize("name", ["key", "emb_vector"])
@pytest.mark.parametrize("num_bytes", [0, 41])
def test_an_empty_or_ragged_file_is_named(folder, name, num_bytes):
    (folder / name).write_bytes(bytes(num_bytes))
    problem = f"sparse model file {folder / name} has {num_bytes} bytes"
    with pytest.raises(TableError, match=re.escape(problem)):
        open_sparse_model(folder, 3)


@pytest.mark.parametrize("name", ["key", "emb_vector"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    problem = f"sparse model file {folder / name}: No such file"
    with pytest.raises(TableError, match=re.escape(problem)):
        open_sparse_model(folder, 3)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(TableError, match=r"sparse model .*/nowhere is not a folder"):
        open_sparse_model(tmp_path / "nowhere", 3)


def test_writing_is_not_done_key_by_key(tmp_path):
    keys = np.arange(1_000_000)
    block = np.zeros((100_000, 16), np.float32)
    started = time.monotonic()
    write_sparse_model(tmp_path / "table", keys, [block] * 10)
    assert time.monotonic() - started < 2
