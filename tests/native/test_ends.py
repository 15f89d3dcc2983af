"""However a process ends or divides, lookups stay right, and nothing hangs or crashes.

Without TensorFlow, which brings threads of its own; `tests/parity/test_lookup_ends.py` is with it.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpsbench.hps.configuration import Configuration, ModelConfiguration, write_configuration
from hpsbench.hps.sparse_model import write_sparse_model

NUM_ROWS, DIM = 200_000, 16

#: Opens the model, and starts all its threads. `check()` is a lookup of many keys, compared.
BEGIN = """
import gc, multiprocessing, os, signal, sys, threading, time
import numpy as np
from hpsbench.hps.lookup import open_model

path = sys.argv[1]
model = open_model(path, "m")

def check(model, seed=0, size=20_000):
    rows = np.random.default_rng(seed).integers(-50, {num_rows} + 50, size)
    answer = model.lookup(0, rows * 7)
    known = (rows >= 0) & (rows < {num_rows})
    expected = np.where(known, rows, -1).astype(np.float32)
    assert (answer == expected[:, None]).all(), "a wrong row"

def for_ever(model):
    seed = 0
    while True:
        check(model, seed)
        seed += 1

def many(count, daemon):
    arguments = dict(target=for_ever, args=(model,), daemon=daemon)
    threads = [threading.Thread(**arguments) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)

def wait(child):
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code == 7, f"the child ended with {{code}}"

check(model)
"""


@pytest.fixture(scope="module")
def ps_config_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    rows = np.repeat(np.arange(NUM_ROWS, dtype=np.float32)[:, None], DIM, axis=1)
    order = np.random.default_rng(0).permutation(NUM_ROWS)
    write_sparse_model(folder / "t", order * 7, [rows[order]])
    model = ModelConfiguration(
        model="m",
        sparse_files=(str(folder / "t"),),
        embedding_vecsize_per_table=(DIM,),
        maxnum_catfeature_query_per_table_per_sample=(1,),
        default_value_for_each_table=(-1.0,),
        deployed_device_list=(0,),
    )
    return write_configuration(folder / "ps.json", Configuration(models=(model,)))


def run(folder: Path, ps_config_file: Path, code: str) -> tuple[int, str, str]:
    """Run the code after BEGIN; return how it ended, what it printed and what it complained of."""
    program = folder / "program.py"
    program.write_text(BEGIN.format(num_rows=NUM_ROWS) + code)
    result = subprocess.run(
        [sys.executable, program, ps_config_file],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


ENDS = {
    "the end of the program, while daemon threads look up": ("many(4, daemon=True)", 0),
    "sys.exit in the middle": ("many(4, daemon=True)\nsys.exit(7)", 7),
    "os._exit in the middle": ("many(4, daemon=True)\nos._exit(7)", 7),
    "an exception in the middle": (
        "sys.excepthook = lambda *_: None\nmany(4, daemon=True)\nraise RuntimeError", 1,
    ),
    "a thread that ends last": (
        "threading.Thread(target=lambda: [time.sleep(0.3), check(model)]).start()", 0,
    ),
    "a model let go while others look up": (
        "other = open_model(path, 'm')\n"
        "threads = [threading.Thread(target=check, args=(model, i)) for i in range(8)]\n"
        "[t.start() for t in threads]\n"
        "del model, other\ngc.collect()\n[t.join() for t in threads]",
        0,
    ),
    "a model in a module that the interpreter takes down": (
        "import types\nsys.modules['kept'] = types.SimpleNamespace(model=model)\ndel model", 0,
    ),
    "a lookup when Python runs its exit handlers": (
        "import atexit\natexit.register(check, model)\nmany(2, daemon=True)", 0,
    ),
    "SIGTERM in the middle": (
        "many(4, daemon=True)\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(30)",
        -signal.SIGTERM,
    ),
    "a signal's handler that looks up": (
        "signal.signal(signal.SIGALRM, lambda *_: check(model, 5))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)\n"
        "for i in range(200): check(model, i)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)", 0,
    ),
    "a child that looks up, and ends as Python does": (
        "child = os.fork()\nif child == 0:\n    check(model)\n    sys.exit(7)\nwait(child)", 0,
    ),
    "a child that lets the model go": (
        "child = os.fork()\nif child == 0:\n    check(model)\n    del model\n    gc.collect()\n"
        "    os._exit(7)\nwait(child)\ncheck(model)",
        0,
    ),
    "children of a process that looks up all the time": (
        "many(3, daemon=True)\n"
        "for i in range(40):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        signal.alarm(20)\n"
        "        check(model, i)\n        check(open_model(path, 'm'), i)\n        os._exit(7)\n"
        "    wait(child)\n"
        "os._exit(0)",
        0,
    ),
    "a child of a process that has only just opened the model": (
        "fresh = open_model(path, 'm')\nchild = os.fork()\n"
        "if child == 0:\n    signal.alarm(20)\n    check(fresh)\n    del fresh\n    gc.collect()\n"
        "    os._exit(7)\n"
        "wait(child)", 0,
    ),
    "a grandchild": (
        "child = os.fork()\nif child == 0:\n    check(model)\n    child = os.fork()\n"
        "    if child == 0:\n        check(model)\n        os._exit(7)\n"
        "    wait(child)\n    check(model)\n    os._exit(7)\n"
        "wait(child)", 0,
    ),
    "multiprocessing that forks": (
        "with multiprocessing.get_context('fork').Pool(3) as pool:\n"
        "    pool.starmap(lambda_check, [(i,) for i in range(12)])\n", 0,
    ),
    "multiprocessing that spawns": (
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "        pool.starmap(lambda_check, [(i,) for i in range(4)])\n", 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_as_it_is_told(tmp_path, ps_config_file, end):
    code, expected = ENDS[end]
    if "lambda_check" in code:
        code = f"def lambda_check(seed):\n    check(model, seed)\n\n{code}"
    ended = run(tmp_path, ps_config_file, code)
    assert ended == (expected, "", "")


HARD_END = """
import subprocess
for _ in range(5):
    many(2, daemon=True)
print("busy", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_the_others_right(tmp_path, ps_config_file):
    """Four processes on the same mapped files; one is killed in the middle."""
    program = tmp_path / "program.py"
    program.write_text(BEGIN.format(num_rows=NUM_ROWS) + HARD_END)
    victim = subprocess.Popen(
        [sys.executable, program, ps_config_file], stdout=subprocess.PIPE, text=True
    )
    with victim:
        assert victim.stdout.readline() == "busy\n"
        others = tmp_path / "others.py"
        others.write_text(
            BEGIN.format(num_rows=NUM_ROWS) + "for i in range(150): check(model, i)\nprint('right')"
        )
        running = [
            subprocess.Popen([sys.executable, others, ps_config_file], stdout=subprocess.PIPE)
            for _ in range(3)
        ]
        os.kill(victim.pid, signal.SIGKILL)
        outputs = [process.communicate(timeout=120)[0] for process in running]
    assert outputs == [b"right\n"] * 3
    assert victim.returncode == -signal.SIGKILL
