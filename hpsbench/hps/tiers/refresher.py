"""The thread that refreshes a model's caches in the background."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

_LOG = logging.getLogger("hpsbench.hps")


def start_refreshing(
    owner: Any, name: str, refresh: Callable[[Any], None], *, delay_s: float, interval_s: float
) -> Callable[[], None]:
    """Call `refresh(owner)` after `delay_s`, then every `interval_s`; 0: once, or not at all.

    It ends with `owner`, which it does not keep alive, before the interpreter ends, or when the
    function that is returned is called, which waits for a refresh under way. A refresh that fails
    is logged, and the next one comes all the same.
    """
    if delay_s <= 0 and interval_s <= 0:
        return lambda: None
    stopped = threading.Event()
    reference = weakref.ref(owner)

    def serve() -> None:
        wait_s = delay_s if delay_s > 0 else interval_s
        while not stopped.wait(wait_s):
            model = reference()
            if model is None:
                return
            try:
                refresh(model)
            except Exception:
                _LOG.exception("model %s: its caches could not be refreshed", name)
            del model
            if interval_s <= 0:
                return
            wait_s = interval_s

    thread = threading.Thread(target=serve, name=f"hps refresh {name}", daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        if thread is not threading.current_thread():
            thread.join()

    return weakref.finalize(owner, stop)
