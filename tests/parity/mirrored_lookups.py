"""Lookups of a MirroredStrategy over two devices; run as a program, since devices are set once.

`python mirrored_lookups.py CPU|GPU FOLDER` prints what each device answered, and how it was asked.
"""

import json
import sys
from pathlib import Path

import lookup_models
import numpy as np
import tensorflow as tf

import hpsbench.hps as hps

KEYS = np.random.default_rng(0).permutation(3000) * 11 - 500
STEPS = 6


def main(kind: str, folder: Path) -> None:
    """Ask batches of other keys on each of two devices, and compare all rows."""
    if kind == "CPU":
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    for gpu in tf.config.list_physical_devices("GPU"):
        # TensorFlow would leave nothing for the caches, which come after it here.
        tf.config.experimental.set_memory_growth(gpu, True)
    devices = [f"{kind}:{i}" for i in range(2)]
    strategy = tf.distribute.MirroredStrategy(devices)
    table = lookup_models.seeded_table(KEYS, 32, default=2.5)
    path = lookup_models.write_model(
        folder, [table], gpucacheper=0.3, hit_rate_threshold=1.1, init_ec=False,
        deployed_device_list=(0, 1) if kind == "GPU" else (0,),
    )  # fmt: skip
    with strategy.scope():
        layer = hps.LookupLayer("m", 0, 32, tf.float32, ps_config_file=str(path))
        half = hps.LookupLayer("m", 0, 32, tf.float16, ps_config_file=str(path))
        dense = tf.Variable(np.eye(32, dtype=np.float32))

    @tf.function
    def step(ids):
        rows = layer(ids)
        return rows, half(ids), tf.linalg.matmul(rows, dense)

    asked_on = set()
    for number in range(STEPS):
        rng = np.random.default_rng(number)
        ids = [rng.choice(np.append(KEYS, [-7, 10**6]), (64, 3)) for _ in devices]
        batches = strategy.experimental_distribute_values_from_function(
            lambda context, ids=ids: tf.constant(ids[context.replica_id_in_sync_group])
        )
        rows, halves, product = strategy.run(step, args=(batches,))
        for replica, keys in enumerate(ids):
            expected = table.answer(keys)
            got = strategy.experimental_local_results(rows)[replica]
            asked_on.add(got.backing_device.split("device:")[-1])
            np.testing.assert_array_equal(got.numpy(), expected)
            np.testing.assert_array_equal(
                strategy.experimental_local_results(halves)[replica].numpy(),
                expected.astype(np.float16),
            )
            np.testing.assert_allclose(
                strategy.experimental_local_results(product)[replica].numpy(), expected, rtol=1e-2
            )
    facts = hps.statistics()["m"]["sparse_embedding0"]
    caches = {str(device): found["keys"] for device, found in facts["gpu_caches"].items()}
    print(json.dumps({"devices": sorted(asked_on), "host_keys": facts["keys"], "gpu_keys": caches}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
