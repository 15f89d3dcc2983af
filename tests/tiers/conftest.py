"""Fixtures for tests of tiers."""

import time

import pytest

from hpsbench.hps import session


@pytest.fixture
def wait_until():
    """Return a function that waits until a condition holds, or fails after 10 s."""

    def wait(condition, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it did not come to that"
            time.sleep(0.02)

    return wait


@pytest.fixture
def nothing_initialised():
    """Have the process initialised by the test alone."""
    session.reset()
    yield
    session.reset()
