"""What a client must know of a server, and nothing of how it came to run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One model on one running Triton; addresses are `host:port`, without a scheme."""

    http: str
    grpc: str | None
    metrics: str | None
    model: str
    #: The models whose server-side times add up to this one's: itself, or an ensemble's steps.
    timed_models: tuple[str, ...]
