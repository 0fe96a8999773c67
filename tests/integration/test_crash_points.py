"""The short form of the crash-point proof (`tests/proofs/crash_points.py`, `make crash_points`)."""

import pytest

from hybridkit.dev import Server
from tests.proofs.crash_points import prove

pytestmark = pytest.mark.real_server

STEPS = (2, 5, 9, 11)
"""At the claim, at the changed record, and at the event, on the way there or back; the long form takes every step."""


async def test_a_handler_that_dies_anywhere_has_each_effect_once(
    postgres_url: str, mongo_url: str, own_redis_server: Server, rabbitmq_url: str
) -> None:
    """Three writes and one event, killed at chosen steps and at random moments: nothing is lost or doubled."""
    urls = {
        "postgres": postgres_url,
        "mongo": mongo_url,
        "redis": own_redis_server.url,
        "rabbitmq": rabbitmq_url,
    }
    verdict = await prove(urls, kills=3, seed=1, steps=STEPS)
    assert verdict.wrong == []
    assert verdict.killed_at == list(STEPS)
    assert len(verdict.placed) == len(STEPS) + 9
