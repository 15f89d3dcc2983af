"""A database that fails is left alone for a while, and asked again when it has recovered."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

LOG = logging.getLogger("hpsbench.hps")
#: A tier warns once in this time, however often it fails.
WARNING_INTERVAL_S = 10.0
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
#: A database that fails again sooner than this has not recovered: the back-off goes on growing.
_STEADY_S = 10.0


class Circuit:
    """Open while a database fails: then nobody asks it but a thread that waits for its recovery.

    So a failure costs only those lookups that are on their way at that time, each at most the
    database's timeout; all others go past it at once.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], None],
        settle: Callable[[], None],
        updates: threading.RLock,
    ) -> None:
        """`probe` is called until it does not raise, and then `settle`, with `updates` locked.

        `name` stands in warnings. No update is under way, and none can start, between the first
        step of `settle` and the closing of the circuit.
        """
        self._name = name
        self._probe, self._settle, self._updates = probe, settle, updates
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._open = False
        self._backoff_s = FIRST_BACKOFF_S
        self._recovered_at = -_STEADY_S
        self._warned_at = -WARNING_INTERVAL_S
        self._unreported = 0
        self._thread: threading.Thread | None = None

    @property
    def open(self) -> bool:
        """Whether the database is not to be asked."""
        return self._open

    def fail(self, error: BaseException) -> None:
        """Open the circuit, warn (at most once in WARNING_INTERVAL_S), and wait for recovery."""
        with self._lock:
            self._warn(error)
            if self._open or self._closed.is_set():
                return
            self._open = True
            if time.monotonic() - self._recovered_at > _STEADY_S:
                self._backoff_s = FIRST_BACKOFF_S
            self._thread = threading.Thread(
                target=self._wait_for_recovery, name=f"hps {self._name}", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Stop waiting for recovery; afterwards the circuit stays as it is."""
        self._closed.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _warn(self, error: BaseException) -> None:
        now = time.monotonic()
        self._unreported += 1
        if now - self._warned_at < WARNING_INTERVAL_S:
            return
        LOG.warning(
            "%s fails, and lookups go past it until it recovers (%d failures since the last "
            "warning): %s",
            self._name, self._unreported, error,
        )  # fmt: skip
        self._warned_at, self._unreported = now, 0

    def _wait_for_recovery(self) -> None:
        while not self._closed.wait(self._backoff_s):
            self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)
            try:
                self._probe()
                with self._updates:
                    self._settle()
                    with self._lock:
                        self._recovered_at = time.monotonic()
                        self._open = False
            except Exception as error:
                with self._lock:
                    self._warn(error)
                continue
            LOG.info("%s has recovered", self._name)
            return
