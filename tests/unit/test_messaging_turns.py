"""Beside each other or alone: whatever begins and ends meanwhile."""

import asyncio

import pytest

from hybridkit.messaging._consuming._isolation import HandlerLock


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_runs_alone_waits_for_the_others_and_they_for_it() -> None:
    """A run that comes while another waits to be alone begins after it."""
    lock, log = HandlerLock(), list[str]()
    await lock.acquire_shared()

    async def alone() -> None:
        async with lock.exclusive(wait_seconds=60) as is_alone:
            log.append(f"alone {is_alone}")
            await asyncio.sleep(0)
            log.append("alone no more")

    async def beside() -> None:
        await lock.acquire_shared()
        log.append("beside")
        lock.release_shared()

    async with asyncio.TaskGroup() as group:
        group.create_task(alone())
        await settle()
        group.create_task(beside())
        await settle()
        assert log == []
        lock.release_shared()
    assert log == ["alone True", "alone no more", "beside"]
    assert repr(lock) == "HandlerLock(running=0, is_free=True)"


async def test_one_at_a_time_is_alone() -> None:
    """Of five that want to be alone, none runs beside another."""
    lock, together = HandlerLock(), 0

    async def alone() -> None:
        nonlocal together
        async with lock.exclusive(wait_seconds=60) as is_alone:
            assert is_alone
            together += 1
            await settle()
            assert together == 1
            together -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(alone())


@pytest.mark.parametrize("ending", ["late", "cancelled"])
async def test_who_can_not_be_alone_keeps_nobody_waiting(ending: str) -> None:
    """After its time, or its cancellation, shared and exclusive runs begin again."""
    lock = HandlerLock()
    await lock.acquire_shared()

    async def alone() -> bool:
        async with lock.exclusive(wait_seconds=0.01 if ending == "late" else 60) as is_alone:
            return is_alone

    task = asyncio.create_task(alone())
    await settle()
    if ending == "late":
        assert await task is False
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.wait_for(lock.acquire_shared(), 30)
    lock.release_shared()
    lock.release_shared()
    async with lock.exclusive(wait_seconds=60) as is_alone:
        assert is_alone


async def test_an_error_of_the_block_opens_again() -> None:
    """The lock is released, whatever ends the block."""
    lock = HandlerLock()
    with pytest.raises(LookupError):
        async with lock.exclusive(wait_seconds=60):
            raise LookupError
    await asyncio.wait_for(lock.acquire_shared(), 30)


async def test_a_loop_has_one_of_them() -> None:
    """All consumers of one event loop share a lock; another loop has another one."""
    assert HandlerLock.of_loop() is HandlerLock.of_loop()
    assert await asyncio.to_thread(lambda: asyncio.run(_here())) is not HandlerLock.of_loop()


async def _here() -> HandlerLock:
    return HandlerLock.of_loop()


async def test_others_wait_for_no_longer_than_they_have_to() -> None:
    """Who is alone and doesn't end runs on, beside them; the next one can be alone again."""
    lock = HandlerLock()
    async with lock.exclusive(wait_seconds=60, max_hold_seconds=0.01) as is_alone:
        assert is_alone
        await asyncio.wait_for(lock.acquire_shared(), 30)
        lock.release_shared()
        async with lock.exclusive(wait_seconds=60, max_hold_seconds=60) as is_next:
            assert is_next
    assert lock.is_free
