"""Updated rows reach every kind of lookup in TensorFlow, those of constant ids too."""

import lookup_models
import numpy as np
import pytest
import tensorflow as tf

import hpsbench.hps as hps
from hpsbench.hps import session

TABLE = lookup_models.seeded_table(np.arange(50), 4)

IDS = {
    "constant": lambda: tf.constant([3, 4], tf.int64),
    "computed from constants": lambda: tf.range(1, 3) + 2,
    "of Python": lambda: np.array([3, 4]),
}


@pytest.fixture(autouse=True)
def _initialised(tmp_path):
    session.reset()
    hps.Init(ps_config_file=str(lookup_models.write_model(tmp_path, [TABLE])))
    yield
    session.reset()


@pytest.mark.parametrize("ids", IDS.values(), ids=list(IDS))
def test_constant_ids_are_looked_up_each_time(ids):
    one = hps.LookupLayer("m", 0, 4, tf.float32)
    several = hps.MultiLookupLayer("m", [0, 0], [4, 4], tf.float32)

    @tf.function
    def ask():
        return one(ids()) * 1.0, *several([ids(), ids()])

    for rows in ask():
        np.testing.assert_array_equal(rows, TABLE.rows[[3, 4]])
    new = np.full((1, 4), 7, np.float32)
    hps.update("m", 0, np.array([3]), new)
    for rows in ask():
        np.testing.assert_array_equal(rows, np.vstack([new, TABLE.rows[4:5]]))
