"""Gauges of a state that changes too often to be counted at each change: read on each beat of the watchdog instead."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

type Sampler = Callable[[], None]

_samplers: Final[list[Sampler]] = []


@contextmanager
def sampled(sampler: Sampler) -> Generator[None]:
    """Have a sampler set its gauges inside the block, some times per second and before `/metrics` is shown."""
    _samplers.append(sampler)
    try:
        yield
    finally:
        _samplers.remove(sampler)


def take_samples() -> None:
    """Call all samplers."""
    for sampler in _samplers:
        sampler()
