"""TensorFlow, the parameter server and Python may end in any order, in the middle of lookups."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lookup_models import seeded_table, write_model

TABLE = seeded_table(np.arange(60_000)[::-1] * 3, 32, default=-1.0)

BEGIN = """
import atexit, gc, os, signal, sys, threading, time
import numpy as np
import hpsbench.hps as hps
import tensorflow as tf
from hpsbench.hps import session

path = sys.argv[1]
known = np.load(sys.argv[2])

def layer():
    return hps.LookupLayer("m", 0, 32, tf.float32, ps_config_file=path)

def check(lookup, seed, size=512):
    keys = np.random.default_rng(seed).integers(-30, 180_030, (size, 4))
    rows = np.where((keys % 3 == 0) & (keys >= 0) & (keys < 180_000), 59_999 - keys // 3, 60_000)
    answer = lookup(tf.constant(keys)).numpy()
    assert np.array_equal(answer, known[rows]), "a wrong row"

hps.Init(ps_config_file=path)
lookup = tf.function(layer().__call__)
check(lookup, 0)

def for_ever(lookup, seed):
    try:
        while True:
            seed += 1
            check(lookup, seed, (8, 64, 2048)[seed % 3])
    except AssertionError:
        os._exit(9)
    except BaseException:
        # The session has gone. Told by a daemon thread while Python ends, it would be fatal to it.
        return

def many(count, *, daemon=True):
    threads = [
        threading.Thread(target=for_ever, args=(lookup, 1000 * i), daemon=daemon)
        for i in range(count)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
"""

ENDS = {
    "the end of the program while 12 threads look up": ("many(12)", 0),
    "sys.exit while threads look up": ("many(4)\nsys.exit(7)", 7),
    "os._exit while threads look up": ("many(4)\nos._exit(7)", 7),
    "the session goes first, and comes back with the next lookup": (
        "session.reset()\ncheck(lookup, 1)\nsession.reset()", 0,
    ),
    "the session goes in an exit handler, while threads look up": (
        "atexit.register(session.reset)\nmany(4)", 0,
    ),
    "the models go first": (
        "many(4)\ndel lookup\ngc.collect()\nsession.reset()\nhps.Init(ps_config_file=path)\n"
        "check(layer(), 3)", 0,
    ),
    "TensorFlow's context goes first": (
        "from tensorflow.python.eager import context\n"
        "del lookup\ngc.collect()\ncontext._reset_context()\ncheck(layer(), 3)", 0,
    ),
    "sessions and lookups change all the time": (
        "over = threading.Event()\nwrong = []\n"
        "def ask(i):\n"
        "    own = tf.function(layer().__call__)\n"
        "    seed = 1000 * i\n"
        "    while not over.is_set():\n"
        "        seed += 1\n"
        "        try:\n"
        "            check(own, seed)\n"
        "        except BaseException as error:\n"
        "            wrong.append(repr(error))\n"
        "threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]\n"
        "[t.start() for t in threads]\n"
        "for _ in range(30):\n"
        "    session.reset()\n    time.sleep(0.02)\n"
        "over.set()\n[t.join() for t in threads]\n"
        "assert not wrong, wrong[0]", 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_as_it_is_told(tmp_path, end):
    code, expected = ENDS[end]
    path = write_model(tmp_path, [TABLE])
    np.save(tmp_path / "known.npy", np.vstack([TABLE.rows, np.full((1, 32), -1, np.float32)]))
    program = tmp_path / "program.py"
    program.write_text(BEGIN + code)
    result = subprocess.run(
        [sys.executable, program, path, tmp_path / "known.npy"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (expected, ""), result.stderr[-4000:]
    for complaint in ("Traceback", "terminate called", "Segmentation", "Check failed"):
        assert complaint not in result.stderr


SPAWN = """
import multiprocessing, sys
import numpy as np

def serve(path, seed, answers):
    import hpsbench.hps as hps
    import tensorflow as tf
    keys = np.random.default_rng(seed).integers(0, 60_000, (64, 4)) * 3
    rows = hps.LookupLayer("m", 0, 32, tf.float32, ps_config_file=path)(keys)
    answers.put((seed, rows.numpy()))

if __name__ == "__main__":
    import hpsbench.hps as hps
    hps.Init(ps_config_file=sys.argv[1])
    known = np.load(sys.argv[2])
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    children = [context.Process(target=serve, args=(sys.argv[1], i, answers)) for i in range(2)]
    for child in children:
        child.start()
    for _ in children:
        seed, rows = answers.get(timeout=200)
        keys = np.random.default_rng(seed).integers(0, 60_000, (64, 4))
        assert np.array_equal(rows, known[59_999 - keys])
    for child in children:
        child.join()
        assert child.exitcode == 0
    print("right")
"""


def test_spawned_processes_serve_the_same_files(tmp_path):
    path = write_model(tmp_path, [TABLE])
    np.save(tmp_path / "known.npy", TABLE.rows)
    program = tmp_path / "spawn.py"
    program.write_text(SPAWN)
    result = subprocess.run(
        [sys.executable, program, path, Path(tmp_path / "known.npy")],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "right\n"), result.stderr[-4000:]
