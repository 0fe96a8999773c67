"""What the guard does without Redis, mode by mode, and what it is made with."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from hybridkit.coordination import Redis, connect_redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.errors import DeclarationError, UnavailableError
from hybridkit.idempotency import Acquired, Finish, IdempotencyGuard, Outcome, RedisDown
from hybridkit.observability import metrics

KEY = "orders:order:42"


class DeadRedis:
    """Accepts connections, counts them, and closes them; or leaves them open without a word."""

    def __init__(self) -> None:
        self.connections = 0
        self.url = ""
        self.is_silent = False

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.is_silent:
            await reader.read(-1)
        writer.close()


@pytest.fixture
async def dead() -> AsyncGenerator[DeadRedis]:
    dead = DeadRedis()
    server = await asyncio.start_server(dead.accept, "127.0.0.1", 0)
    dead.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    async with server:
        yield dead


@pytest.fixture
async def redis(dead: DeadRedis) -> AsyncGenerator[Redis]:
    async with connect_redis(dead.url) as redis:
        yield redis


@pytest.fixture
async def hasty_redis(dead: DeadRedis) -> AsyncGenerator[Redis]:
    async with connect_redis(dead.url, timeout_seconds=0.02) as redis:
        yield redis


def outcomes(scope: str, outcome: str) -> float:
    return float(metrics.idempotency_outcomes.labels(scope, outcome)._value.get())


async def test_durable_work_goes_on_and_is_counted(redis: Redis) -> None:
    """The answer says that it is unguarded."""
    before = outcomes("orders", "unguarded")
    answer = await IdempotencyGuard(redis).begin(KEY, None)
    assert isinstance(answer, Acquired)
    assert (answer.guarded, answer.fence, answer.taken_over) == (False, 0, False)
    assert outcomes("orders", "unguarded") == before + 1


async def test_a_durable_block_runs_and_ends_well(redis: Redis) -> None:
    """Its result has nowhere to go, which is no error."""
    async with IdempotencyGuard(redis).claim(KEY, None) as claim:
        claim.set_result("done")


@pytest.mark.parametrize("mode", [RedisDown.EXTERNAL, RedisDown.STRICT])
async def test_other_work_is_refused_and_counted(redis: Redis, mode: RedisDown) -> None:
    """The error says when to come back."""
    before = outcomes("orders", "unavailable")
    guard = IdempotencyGuard(redis, when_down=mode)
    for _ in range(5):
        with pytest.raises(UnavailableError) as caught:
            async with guard.claim(KEY, None):
                pytest.fail("it ran")
        assert caught.value.retry_after_seconds == 1.0
    assert outcomes("orders", "unavailable") == before + 5


async def away(redis: Redis) -> None:
    """Ask until Redis counts as away."""
    multiplexer = multiplexer_of(redis)
    while not multiplexer.is_away:
        with pytest.raises(UnavailableError):
            await multiplexer.execute("PING", even_if_away=True)


@pytest.mark.parametrize("mode", [RedisDown.DURABLE, RedisDown.EXTERNAL])
async def test_a_redis_that_is_away_is_not_asked(hasty_redis: Redis, mode: RedisDown) -> None:
    """The answer comes within the turn of the event loop, and no command waits for a connection."""
    await away(hasty_redis)
    guard = IdempotencyGuard(hasty_redis, when_down=mode)
    for _ in range(20):
        asking = asyncio.ensure_future(guard.begin(KEY, None))
        await asyncio.sleep(0)
        assert asking.done()
        assert (asking.exception() is None) is (mode is RedisDown.DURABLE)


async def test_strict_waits_for_redis_every_time(hasty_redis: Redis) -> None:
    """It never believes that Redis is still down."""
    await away(hasty_redis)
    guard = IdempotencyGuard(hasty_redis, when_down=RedisDown.STRICT)
    asking = asyncio.ensure_future(guard.begin(KEY, None))
    await asyncio.sleep(0)
    assert not asking.done()
    with pytest.raises(UnavailableError):
        await asking


@pytest.mark.parametrize(("mode", "waits"), [(RedisDown.DURABLE, False), (RedisDown.EXTERNAL, True)])
async def test_an_outcome_is_worth_a_timeout_only_where_nothing_else_protects(
    hasty_redis: Redis, mode: RedisDown, *, waits: bool
) -> None:
    """Durable work tells it later, in the background."""
    await away(hasty_redis)
    guard = IdempotencyGuard(hasty_redis, when_down=mode)
    acquired = Acquired(key=KEY, token="t", fence=1, taken_over=False, guarded=True, fingerprint="f")
    finishing = asyncio.ensure_future(guard.finish(acquired, Outcome.COMPLETED))
    await asyncio.sleep(0)
    assert finishing.done() is not waits
    assert await finishing is Finish.UNRECORDED


async def test_a_silent_redis_costs_the_timeout_of_the_client(dead: DeadRedis) -> None:
    """The connection is there, and no answer comes."""
    dead.is_silent = True
    async with connect_redis(dead.url, timeout_seconds=0.05) as redis:
        guard = IdempotencyGuard(redis, when_down=RedisDown.EXTERNAL)
        with pytest.raises(UnavailableError, match="can't reach Redis"):
            await guard.begin(KEY, None)


async def test_renewing_says_that_nobody_knows(redis: Redis) -> None:
    """The holder may still have the lease."""
    acquired = Acquired(key=KEY, token="t", fence=1, taken_over=False, guarded=True, fingerprint="f")
    with pytest.raises(UnavailableError, match="can't reach Redis"):
        await IdempotencyGuard(redis).renew(acquired)


async def test_a_key_of_another_form_is_refused_before_anything_is_asked(
    redis: Redis, dead: DeadRedis
) -> None:
    """Redis sees no connection."""
    with pytest.raises(ValueError, match="context:entity:id"):
        await IdempotencyGuard(redis).begin("42", None)
    assert dead.connections == 0


@pytest.mark.parametrize(
    "options",
    [
        {"lease_seconds": 0},
        {"lease_seconds": 60, "retention_seconds": 60},
        {"max_takeovers": -1},
    ],
    ids=str,
)
async def test_numbers_that_can_not_be_are_refused(redis: Redis, options: dict[str, float]) -> None:
    """When the guard is made, and not at the first claim."""
    with pytest.raises(DeclarationError):
        IdempotencyGuard(redis, **options)  # type: ignore[arg-type] # numbers of every kind


async def test_its_repr_names_what_decides_and_no_url(redis: Redis) -> None:
    """The URL may have a password."""
    assert "timeout_seconds=0.5" in repr(multiplexer_of(redis))
    assert repr(IdempotencyGuard(redis)) == (
        "IdempotencyGuard(when_down='durable', lease_seconds=30.0, retention_seconds=86400.0,"
        f" records=Records(key_prefix='hk:claim:', redis={multiplexer_of(redis)!r}))"
    )
