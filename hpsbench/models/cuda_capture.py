"""What CUDA graphs of one process have in common: they are captured one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Held by whoever captures a graph, and by whoever does what must not meet a capture of another
#: thread's: waiting for all of a GPU, as the first and the last steps of a model do.
CAPTURING = threading.RLock()


def one_at_a_time_at_first(run: Callable[[], None]) -> Callable[[], None]:
    """Return `run`, which holds CAPTURING when a thread first calls it.

    ONNX Runtime captures what a session runs in each thread anew.
    """
    captured: set[int] = set()

    def run_or_capture() -> None:
        thread = threading.get_ident()
        if thread in captured:
            run()
            return
        with CAPTURING:
            run()
        captured.add(thread)

    return run_or_capture
