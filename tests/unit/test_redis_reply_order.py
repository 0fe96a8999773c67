"""Replies never shift: a random walk on a scripted server; `make redis_failover` walks further, and over real Redis."""

import random

import pytest

from hybridkit.coordination import connect_redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._redis import _handshake, _resp
from tests.helpers.redis_walk import Walk
from tests.helpers.scripted_redis import ScriptedRedis, echo_last

COMMANDS = 2000


class HarmedServer(ScriptedRedis):
    """It forgets scripts now and then, and sends its answers in pieces of any size."""

    def __init__(self, seed: int) -> None:
        super().__init__(self._answer)
        self._forgets = random.Random(seed)

    def _answer(self, command: list[bytes]) -> bytes:
        forgets = command[0] == b"EVALSHA" and self._forgets.random() < 0.3
        return b"-NOSCRIPT No matching script.\r\n" if forgets else echo_last(command)

    def disturb(self, randomly: random.Random) -> None:
        self.piece = randomly.choice([None, 1, 3, 7, 100])


@pytest.mark.parametrize("kind", ["hiredis", "python", "streamed"])
async def test_every_reply_is_the_one_to_its_own_command(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under cancellation, late answers, answers in pieces, cut and frozen connections."""
    if kind == "python":
        monkeypatch.setattr(_resp, "_hiredis", None)
    if kind == "streamed":

        def keep(*_: object, **__: object) -> None:
            raise AttributeError("no attribute '_writer'")

        monkeypatch.setattr(_handshake, "OpenConnection", keep)
    async with HarmedServer(seed=1).open() as server, connect_redis(server.url, timeout_seconds=1) as redis:
        walk = Walk(multiplexer_of(redis), server, seed=1)
        await walk.run(commands=COMMANDS)
        assert walk.shifted == []
        assert walk.outcomes["answered"] > COMMANDS / 4
        assert walk.outcomes["cancelled"] > 0
        assert server.connections > 1
