"""ONNX Runtime as an engine: what it must not do beside running models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ONE_RUN = """
import numpy as np
from onnx import TensorProto, helper
from hpsbench.models.onnx_engine import EngineOptions, OnnxEngine

x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
engine = OnnxEngine(model.SerializeToString(), EngineOptions())
print(engine.run({"x": np.array([-1, 2], np.float32)})["y"].tolist())
"""


def test_an_engine_leaves_no_telemetry_in_the_home_folder(tmp_path: Path) -> None:
    inherited = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_RUN],
        env={**inherited, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("[0.0, 2.0]\n", 0), done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


CLOSED = """
import os
from hpsbench.errors import ServerError

def threads():
    return len(os.listdir("/proc/self/task"))

engine.close()
before = threads()
for _ in range(3):
    engine = OnnxEngine(model.SerializeToString(), EngineOptions())
    given = np.array([-1, 2], np.float32)
    run = engine.bind({"x": Buffer.of(given)}, {"y": Buffer.of(out := np.empty(2, np.float32))})
    run()
    during = threads()
    engine.close()
    engine.close()
    for ask in (run, lambda: engine.run({"x": given})):
        try:
            ask()
        except ServerError as error:
            print(error.problem)
    del run, ask
print(out.tolist(), during > before, threads() == before)
"""


def test_an_engine_that_is_closed_has_no_thread_and_says_so() -> None:
    program = ONE_RUN.replace("import EngineOptions", "import Buffer, EngineOptions") + CLOSED
    several = {"OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **several},
        capture_output=True,
        text=True,
        check=False,
    )
    told = "this engine has been closed\n" * 6
    assert done.stdout == f"[0.0, 2.0]\n{told}[0.0, 2.0] True True\n", done.stderr
