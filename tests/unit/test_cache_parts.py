"""Parts of the cache that need no Redis."""

import asyncio

import pytest
from redis.asyncio import Redis

from hybridkit.coordination._cache._entries import Entries, _result_of
from hybridkit.coordination._cache._loads import Load, Loaded
from hybridkit.coordination._cache._owed import OwedInvalidations
from hybridkit.errors import UnavailableError
from tests.helpers import until


async def test_an_invalidation_that_is_owed_again_while_it_is_made_up_for_stays_owed() -> None:
    """The second one belongs to a later change, which the first one may have come before."""
    owed = OwedInvalidations("users")
    done: list[str] = []

    async def fail() -> None:
        raise UnavailableError("down")

    async def second() -> None:
        if "second" not in done:
            done.append("second")
            raise UnavailableError("down")

    async def first() -> None:
        if not done:
            done.append("tried")
            raise UnavailableError("down")
        if len(done) == 1:
            done.append("first")
            assert not await owed.tell("key", second)
            assert "key" in owed

    assert not await owed.tell("key", first)
    await until(lambda: "key" not in owed)
    assert done == ["tried", "first", "second"]


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_command_that_is_cancelled_is_an_error_of_its_caller(*, is_late: bool) -> None:
    """Unless the caller has one already."""
    task = asyncio.create_task(asyncio.Event().wait())
    reply = _result_of(task)
    if is_late:
        reply.set_exception(UnavailableError("too late"))
    task.cancel()
    with pytest.raises(UnavailableError, match="too late" if is_late else "cancelled"):
        await reply
    await asyncio.wait({task})


async def test_of_late_replies_only_those_that_did_not_come_fail() -> None:
    """A reply that came while the event loop was stalled counts."""
    entries = Entries(Redis, name="users", timeout_seconds=1)
    loop = asyncio.get_running_loop()
    missing, there = loop.create_future(), loop.create_future()
    there.set_result(b"value")
    now = loop.time()
    entries._pending.extend([(now, missing), (now, there)])
    entries._expire(now)
    assert there.result() == b"value"
    with pytest.raises(UnavailableError, match="no reply within"):
        missing.result()


async def test_a_load_has_one_end() -> None:
    """A value that comes after the load has failed changes nothing for its callers, nor does a second error."""
    load: Load[str] = Load("key", "token")
    load.fail(UnavailableError("down"))
    load.succeed(Loaded("value", b'"value"'))
    load.fail(UnavailableError("down again"))
    with pytest.raises(UnavailableError, match=r"down$"):
        await load.wait()
