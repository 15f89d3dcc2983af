"""Inputs of requests as TensorFlow's tensors."""

import numpy as np
import pytest
import tensorflow as tf

from hpsbench.servers.backend.host_inputs import HostInputs

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("shape", [(1, 26), (7, 13), (0, 3), (), (3, 5, 2), (70_001, 26)])
def test_a_tensor_has_the_values_type_and_shape_of_its_array(shape, dtype):
    array = np.asarray(RNG.integers(0, 100, shape)).astype(dtype)
    with tf.device("CPU:0"):
        tensor = HostInputs().tensor("ids", array)
        np.testing.assert_array_equal(tensor.numpy(), array, strict=True)


def test_texts_and_truths_are_tensors_too():
    inputs = HostInputs()
    assert inputs.tensor("flags", np.array([True, False])).numpy().tolist() == [True, False]
    assert inputs.tensor("names", np.array([b"a", b"bc"], object)).numpy().tolist() == [b"a", b"bc"]


def test_an_array_may_lie_anywhere():
    """Shared memory begins where it likes, and clients' arrays may be slices of others."""
    memory = np.zeros(4096, np.uint8)
    for first in range(16):
        array = memory[first : first + 400].view(np.int32)
        array[:] = first
        assert HostInputs().tensor("ids", array).numpy().tolist() == [first] * 100
    columns = np.arange(60, dtype=np.int32).reshape(6, 10)[:, ::3]
    np.testing.assert_array_equal(HostInputs().tensor("ids", columns).numpy(), columns)


def test_inputs_of_one_request_lie_apart_and_the_next_takes_their_memory():
    inputs = HostInputs()
    ids = inputs.tensor("ids", np.full(1000, 1, np.int32))
    numerical = inputs.tensor("numerical", np.full(1000, 2, np.float32))
    assert set(ids.numpy()) == {1}
    assert set(numerical.numpy()) == {2.0}
    inputs.tensor("ids", np.full(10, 3, np.int32))
    assert ids.numpy()[:11].tolist() == [3] * 10 + [1]
    # A larger request has memory of its own.
    inputs.tensor("ids", np.full(2000, 4, np.int32))
    assert ids.numpy()[:11].tolist() == [3] * 10 + [1]
