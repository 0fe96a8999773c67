"""The proof of the outbox, in short: `python -m tests.proofs.relay` is the long one."""

from pathlib import Path
from typing import Any

import pytest

from hybridkit.dev import Server
from tests.proofs.relay import prove

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("unmeasured_test")]


async def test_replicas_that_are_killed_lose_no_event_and_no_order(
    own_postgres_server: Server, rabbitmq_url: str, tmp_path: Path
) -> None:
    """Three replicas, with writers that share keys, keep both promises through a few faults."""
    said: list[Any] = []
    outcome = await prove(own_postgres_server, rabbitmq_url, tmp_path, seed=1, seconds=4, say=said.append)
    assert outcome.holds, dict(outcome.lines())
    assert outcome.faults.total() >= 1
    assert outcome.rows > 100
