from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from hpsbench.load.interleaved import no_garbage_collection
from hpsbench.load.interrupts import deferred_interrupt


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Python's own handler, also where the tests were started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Finalized:
    """Is interrupted where Python drops what is raised."""

    def __del__(self) -> None:
        interrupt()


def test_an_interrupt_in_a_finalizer_is_not_lost() -> None:
    stopped = threading.Event()

    def body() -> None:
        with deferred_interrupt(stopped.set):
            finalized = [Finalized()]
            finalized.clear()
            assert stopped.wait(5)

    with pytest.raises(KeyboardInterrupt):
        body()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_is_raised_at_once() -> None:
    interrupts = []

    def body() -> None:
        with deferred_interrupt(lambda: interrupts.append("first")):
            interrupt()
            interrupts.append("goes on")
            interrupt()
            interrupts.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        body()
    assert interrupts == ["first", "goes on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_handles_it_itself_goes_on_doing_so() -> None:
    handled = []
    before = signal.signal(signal.SIGINT, lambda number, frame: handled.append(number))
    try:
        with deferred_interrupt(lambda: pytest.fail("not ours")):
            interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
    assert handled == [signal.SIGINT]


def test_an_interrupt_while_garbage_is_collected_is_not_lost() -> None:
    def body() -> None:
        cycle: list[object] = [Finalized()]
        cycle.append(cycle)
        del cycle
        with no_garbage_collection():
            pytest.fail("goes on")

    with pytest.raises(KeyboardInterrupt):
        body()
