"""The short form of the proof that replicas of a bot lose nothing: `make bot_replicas` is the long one."""

from pathlib import Path

import pytest

from tests.proofs.bot_replicas import prove

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("unmeasured_test")]


async def test_three_replicas_handle_each_update_once_and_in_order_though_one_is_killed(
    redis_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """The replica that polls is killed with SIGKILL after a third of 300 updates; the others have the rest."""
    outcome = await prove(
        redis_url, rabbitmq_url, tmp_path, updates=300, chats=60, lease_seconds=3.0, say=lambda _: None
    )
    assert outcome.handled == outcome.sent == 300
    assert outcome.disordered == []
    assert outcome.holds, outcome
