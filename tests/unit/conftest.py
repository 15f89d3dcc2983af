"""What every unit test starts from."""

import gc


def pytest_collection_finish() -> None:
    """Keep what was imported out of every later garbage collection.

    A session collects before each thing that it measures. Looking through TensorFlow and all of the
    tests' modules each time took more than the unit tests themselves.
    """
    gc.collect()
    gc.freeze()
