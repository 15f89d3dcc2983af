"""Table fusion: one model of many embedding tables, exported and served apart and fused.

    python examples/table_fusion.py               # 8 tables of 10,000 x 128, as published
    python examples/table_fusion.py --tables 100  # 100 tables of 10,000 x 16

It writes the tables and the JSON file, exports the model twice (its lookups one by one, and fused
into one operation by `hps.fuse`), and serves both exports under both values of the JSON file's
`fuse_embedding_table`. All must answer alike. The two exports take turns, so that a busy machine
slows both; times are means, in milliseconds per batch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

import hpsbench.hps as hps
from hpsbench.hps import session
from hpsbench.hps.sparse_model import write_sparse_model

VOCABULARY = 10_000
KEYS_PER_SAMPLE = 26
PUBLISHED = Path(__file__).parents[1] / "baselines" / "published" / "table-fusion-v100.json"


class InferenceModel(tf.keras.Model):
    """A lookup per table, and one dense layer on all vectors side by side."""

    def __init__(self, num_tables: int, vector_size: int, ps_config_file: Path) -> None:
        super().__init__()
        self.lookup_layers = [
            hps.LookupLayer(
                model_name=f"{num_tables}_table",
                table_id=i,
                emb_vec_size=vector_size,
                emb_vec_dtype=tf.float32,
                ps_config_file=str(ps_config_file),
                name=f"embedding_lookup{i}",
            )
            for i in range(num_tables)
        ]
        self.fc = tf.keras.layers.Dense(1, name="fc")

    def call(self, inputs):
        embeddings = [
            tf.reshape(lookup(ids), [-1, KEYS_PER_SAMPLE * lookup.emb_vec_size])
            for lookup, ids in zip(self.lookup_layers, inputs, strict=True)
        ]
        return self.fc(tf.concat(embeddings, axis=1))


def write_tables(folder: Path, num_tables: int, vector_size: int) -> list[str]:
    """Write one sparse model per table, whose keys go on where the table before ended."""
    rng = np.random.default_rng(0)
    folders = []
    for i in range(num_tables):
        keys = np.arange(i * VOCABULARY, (i + 1) * VOCABULARY)
        rows = rng.standard_normal((VOCABULARY, vector_size), dtype=np.float32)
        write_sparse_model(folder / f"table{i}", keys, [rows])
        folders.append(str(folder / f"table{i}"))
    return folders


def write_json(path: Path, sparse_files: list[str], vector_size: int, fuse_tables: bool) -> None:
    num_tables = len(sparse_files)
    model = {
        "model": f"{num_tables}_table",
        "sparse_files": sparse_files,
        "num_of_worker_buffer_in_pool": num_tables,
        "embedding_table_names": [f"table{i}" for i in range(num_tables)],
        "embedding_vecsize_per_table": [vector_size] * num_tables,
        "maxnum_catfeature_query_per_table_per_sample": [KEYS_PER_SAMPLE] * num_tables,
        "default_value_for_each_table": [0.0] * num_tables,
        "deployed_device_list": [0],
        "max_batch_size": 256,
        "cache_refresh_percentage_per_iteration": 1.0,
        "hit_rate_threshold": 1.0,
        "gpucacheper": 1.0,
        "gpucache": True,
    }
    configuration = {
        "supportlonglong": False,
        "fuse_embedding_table": fuse_tables,
        "models": [model],
    }
    path.write_text(json.dumps(configuration, indent=4))


def random_batches(num_tables: int, batch_size: int, count: int) -> list[list[tf.Tensor]]:
    rng = np.random.default_rng(1)
    first = np.arange(num_tables)[:, None, None] * VOCABULARY
    shape = (num_tables, batch_size, KEYS_PER_SAMPLE)
    return [
        [tf.constant(ids) for ids in (rng.integers(0, VOCABULARY, shape) + first).astype(np.int32)]
        for _ in range(count)
    ]


def time_in_turn(models: dict, batches: list, repeats: int) -> dict[str, float]:
    """Return the mean time of each model in milliseconds per batch, after one call to warm up."""
    seconds = dict.fromkeys(models, 0.0)
    for repeat in range(-1, repeats):
        for name, model in models.items():
            started = time.perf_counter()
            model.serve(batches[repeat % len(batches)]).numpy()
            if repeat >= 0:
                seconds[name] += time.perf_counter() - started
    return {name: total / repeats * 1e3 for name, total in seconds.items()}


def run(folder: Path, num_tables: int, vector_size: int, batch_size: int, repeats: int) -> None:
    print(
        f"{num_tables} tables of {VOCABULARY:,} x {vector_size}, "
        f"batch {batch_size} x {KEYS_PER_SAMPLE} keys each, means of {repeats} batches\n"
    )
    ps_config_file = folder / "ps.json"
    sparse_files = write_tables(folder, num_tables, vector_size)
    model = InferenceModel(num_tables, vector_size, ps_config_file)
    spec = [
        tf.TensorSpec((None, KEYS_PER_SAMPLE), tf.int32, name=f"table{i}")
        for i in range(num_tables)
    ]
    batches = random_batches(num_tables, batch_size, count=4)
    write_json(ps_config_file, sparse_files, vector_size, fuse_tables=False)
    model(batches[0])
    model.export(folder / "unfused", verbose=False, input_signature=[spec])
    hps.fuse(model).export(folder / "fused", input_signature=[spec])

    print(
        f"{'fuse_embedding_table':22}{'tables ready':>14}{'unfused':>12}{'fused':>12}{'ratio':>8}"
    )
    answers = []
    for fuse_tables in (False, True):
        write_json(ps_config_file, sparse_files, vector_size, fuse_tables)
        session.reset()  # a new JSON file is for a new process, or for a session forgotten
        started = time.perf_counter()
        hps.Init(ps_config_file=str(ps_config_file), global_batch_size=batch_size)
        ready_ms = (time.perf_counter() - started) * 1e3
        served = {name: tf.saved_model.load(str(folder / name)) for name in ("unfused", "fused")}
        answers += [m.serve(batches[0]).numpy() for m in served.values()]
        ms = time_in_turn(served, batches, repeats)
        print(
            f"{str(fuse_tables).lower():22}{ready_ms:11.1f} ms{ms['unfused']:9.2f} ms"
            f"{ms['fused']:9.2f} ms{ms['unfused'] / ms['fused']:8.2f}"
        )
    session.reset()
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])
    print("\nall four answer alike, bit for bit")
    if num_tables == 8:
        print_published()


def print_published() -> None:
    published = json.loads(PUBLISHED.read_text("utf-8"))
    figures = {(f["variant"], f["name"]): f["value"] for f in published["figures"]}
    apart = sum(v for (_, name), v in figures.items() if name.startswith("load of table"))
    fused = figures["fused", "load of the fused table"]
    print(f"\npublished, {published['hardware']} (8 tables of {VOCABULARY:,} x 128):")
    print(f"{'false':22}{apart * 1e3:11.1f} ms{'-':>12}")
    batch_ms = figures["fused", "100 iterations"] * 10
    print(f"{'true':22}{fused * 1e3:11.1f} ms{'-':>12}{batch_ms:9.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve many embedding tables, unfused and fused.")
    parser.add_argument("--tables", type=int, default=8, help="8 or 100, as published; 2 or more")
    parser.add_argument("--vector-size", type=int, help="default: 128 up to 8 tables, else 16")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=100, help="batches that are timed")
    options = parser.parse_args()
    vector_size = options.vector_size or (128 if options.tables <= 8 else 16)
    with tempfile.TemporaryDirectory(prefix="table-fusion-") as folder:
        run(Path(folder), options.tables, vector_size, options.batch_size, options.repeats)


if __name__ == "__main__":
    main()
