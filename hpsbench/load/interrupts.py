"""Ctrl-C while threads work: told to them first, and raised when they are done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C call `stop`, and raise KeyboardInterrupt where this context ends.

    Python raises it wherever the main thread happens to be, and drops it where that is a finalizer
    or a weak reference's callback, of which starting and ending threads have many. A second one is
    raised at once. Does nothing on another thread, or where the program handles SIGINT itself.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interrupted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            signal.default_int_handler(number, frame)
        interrupted = True
        stop()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt
