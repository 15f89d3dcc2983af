"""Any batch as parts of few sizes, so that what is compiled or captured per size is so once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SMALLEST = 32
#: A GPU is busy with as many samples, and while it computes a part the next one is copied.
LARGEST = 16_384


@dataclass(frozen=True)
class Part:
    """Samples `first` to `first + count`, computed in a bucket of as many or more."""

    first: int
    count: int
    bucket: int


def bucket_of(count: int) -> int:
    """Return the least power of two that holds `count` samples, SMALLEST to LARGEST."""
    return min(max(SMALLEST, 1 << (count - 1).bit_length()), LARGEST)


def buckets(max_batch_size: int) -> list[int]:
    """Return every bucket that a batch of up to `max_batch_size` samples needs, ascending."""
    largest = bucket_of(max_batch_size)
    return [1 << n for n in range(SMALLEST.bit_length() - 1, largest.bit_length())]


def parts(count: int) -> Iterator[Part]:
    """Yield the parts of a batch of `count` samples, all full but the last."""
    for first in range(0, count, LARGEST):
        samples = min(LARGEST, count - first)
        yield Part(first, samples, bucket_of(samples))
