"""The variants on a running Triton, beside the NumPy reference: what a session asks.

Here models, servers and load meet; each of them knows nothing of the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import threadpoolctl

from hpsbench.config import Suite
from hpsbench.load.client import Client, connect
from hpsbench.load.interleaved import Participant
from hpsbench.models.build import Build
from hpsbench.models.kinds import Batch, kind_of
from hpsbench.models.variants import Variant
from hpsbench.presets import load_suite
from hpsbench.servers.attach import attach
from hpsbench.servers.endpoint import Endpoint
from hpsbench.servers.statistics import LookupCount
from hpsbench.servers.triton import TritonServer, running_triton
from hpsbench.session import NUMPY
from hpsbench.workload import row_of

#: Requests prepared per batch size where each is to carry other keys; then they start over.
DISTINCT_REQUESTS = 16
#: Samples that the NumPy reference computes at most: it tells how fast the machine is now, and a
#: batch of 131,072 would take it ten seconds.
NUMPY_SAMPLES = 256


@dataclass(frozen=True)
class ServedVariants:
    """Variants on one running server; a `Launch` of a session."""

    build: Build
    server: TritonServer

    def endpoint(self, variant: Variant) -> Endpoint:
        """Return where this variant answers."""
        return self.server.endpoint(variant.name, variant.timed_models)

    def client(self, variant: Variant, batches: Sequence[Batch], protocol: str = "") -> Client:
        """Return an open client that sends these batches in turn; close it."""
        suite = self.build.suite
        return connect(
            self.endpoint(variant),
            [variant.inputs(batch) for batch in batches],
            protocol=protocol or suite.load.protocol,
            timeout_s=suite.servers.request_timeout_s,
        )

    def participants(self, batch_size: int, keys: str = "") -> list[Participant]:
        """Return every variant, and the NumPy reference, asked with the same batches."""
        batches = request_batches(self.build.suite, batch_size, keys)
        engines = self.server.engines()
        tracing = self.server.tracing()
        found: list[Participant] = []
        try:
            for variant in self.build.variants:
                client = self.client(variant, batches)
                found.append(
                    Participant(
                        name=row_of(variant.name, keys),
                        send=client.send,
                        endpoint=self.endpoint(variant),
                        statistics=self.server.statistics,
                        engine=variant_engine(variant, engines),
                        tracing=tracing,
                        close=client.close,
                    )
                )
            send = numpy_reference(self.build, batches)
        except BaseException:
            for participant in found:
                participant.close()
            raise
        # It varies least with one thread: of two, one is always waiting for the other.
        limit = threadpoolctl.threadpool_limits(1)
        return [*found, Participant(name=NUMPY, send=send, close=limit.restore_original_limits)]

    def lookups(self) -> dict[str, dict[str, LookupCount]]:
        """Return what each variant's lookups counted so far, by tier, of those that tell."""
        told = self.server.lookups()
        found: dict[str, dict[str, LookupCount]] = {}
        for variant in self.build.variants:
            for tiers in (told[model] for model in variant.models if model in told):
                own = found.setdefault(variant.name, {})
                for tier, count in tiers.items():
                    own[tier] = own.get(tier, LookupCount()) + count
        return found

    def check_alive(self) -> None:
        """Raise ServerDied, with the last lines of its log, unless the server still runs."""
        self.server.check_alive()


@contextmanager
def served_variants(build: Build, *, log: Path) -> Iterator[ServedVariants]:
    """Start a fresh Triton on a built repository and yield it ready, every variant loaded."""
    models = [model for variant in build.variants for model in variant.models]
    with running_triton(build.repository.root, models, build.suite.servers, log=log) as server:
        yield ServedVariants(build, server)


def require_server(suite: Suite) -> None:
    """Raise ServerError unless the server at a URL answers, where `servers.triton` is one.

    For before models are built, which may take minutes.
    """
    if "://" in suite.servers.triton:
        attach(suite.servers.triton)


def variant_engine(variant: Variant, engines: Mapping[str, str]) -> str | None:
    """Return what runs a variant, of an ensemble all its steps that tell; None where none does."""
    found = dict.fromkeys(engines[model] for model in variant.timed_models if model in engines)
    return "; ".join(found) or None


def parity_suite(suite: Suite) -> Suite:
    """Return the suite whose answers are compared: the small one of its model, or `suite` itself.

    It is served as `suite` is, by the same parameter server, but for what makes answers coarser
    (TensorFloat-32) or leaves keys out (a hit rate below 1).
    """
    small = kind_of(suite).parity_preset
    return replace(
        load_suite(small) if small else suite,
        servers=replace(suite.servers, tensor_float_32=False),
        hps=replace(suite.hps, hit_rate_threshold=1.0),
    )


def request_batches(suite: Suite, batch_size: int, keys: str = "") -> list[Batch]:
    """Return the batches to send in turn: one where the keys repeat, else DISTINCT_REQUESTS.

    `keys` names another key stream than the suite's.
    """
    stream = keys or suite.load.keys
    count = 1 if stream == "repeated" else DISTINCT_REQUESTS
    return list(itertools.islice(kind_of(suite).batches(suite, batch_size, stream), count))


def numpy_reference(build: Build, batches: Sequence[Batch]) -> Callable[[], None]:
    """Return a function that has NumPy answer the next batch, as a client's `send` would.

    Of a batch it computes the first NUMPY_SAMPLES.
    """
    turn = itertools.cycle([batch.first(NUMPY_SAMPLES) for batch in batches])

    def send() -> None:
        build.answer(next(turn))

    return send
