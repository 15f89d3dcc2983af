"""What cannot be loaded is told, and nothing is divided by it."""

from __future__ import annotations

import pytest

from hpsbench.errors import ConfigError, RequestError
from hpsbench.load.client import Client
from hpsbench.load_session import LoadPlan, measure_load

REFUSED = "model m answered with status 503: unavailable"


class Answers(Client):
    """A client whose first `answers` requests are answered, and no other."""

    def __init__(self, answers: int) -> None:
        self.left = answers

    def send(self) -> None:
        if not self.left:
            raise RequestError(REFUSED, hint="")
        self.left -= 1

    def close(self) -> None:
        pass


@pytest.mark.parametrize("answers", [0, 30])
def test_a_sweep_over_a_model_that_stops_answering_is_an_error(answers: int) -> None:
    # All connections are one client, so that it is the capacity that is not measured.
    client = Answers(answers)
    with pytest.raises(RequestError, match=f"no request was answered: {REFUSED}"):
        measure_load(LoadPlan(capacity_s=1e-9), lambda: client)


def test_a_rate_at_which_nothing_is_due_is_an_error() -> None:
    plan = LoadPlan(rates_hz=(1e-6,), duration_s=0.01, warmup_s=0.0, capacity_s=1e-9)
    with pytest.raises(ConfigError, match=r"at 1e-06 requests/s none is due in the 0\.01 s"):
        measure_load(plan, lambda: Answers(1000))
