"""Beside each other or alone: whatever begins and ends meanwhile."""

import asyncio

import pytest

from hybridkit.messaging._consuming._turns import Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_runs_alone_waits_for_the_others_and_they_for_it() -> None:
    turns, log = Turns(), list[str]()
    await turns.begin()

    async def alone() -> None:
        async with turns.alone(seconds=60) as is_alone:
            log.append(f"alone {is_alone}")
            await asyncio.sleep(0)
            log.append("alone no more")

    async def beside() -> None:
        await turns.begin()
        log.append("beside")
        turns.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(alone())
        await settle()
        group.create_task(beside())
        await settle()
        assert log == []
        turns.end()
    assert log == ["alone True", "alone no more", "beside"]
    assert repr(turns) == "Turns(running=0, is_open=True)"


async def test_one_at_a_time_is_alone() -> None:
    turns, together = Turns(), 0

    async def alone() -> None:
        nonlocal together
        async with turns.alone(seconds=60) as is_alone:
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
    turns = Turns()
    await turns.begin()

    async def alone() -> bool:
        async with turns.alone(seconds=0.01 if ending == "late" else 60) as is_alone:
            return is_alone

    task = asyncio.create_task(alone())
    await settle()
    if ending == "late":
        assert await task is False
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.wait_for(turns.begin(), 30)
    turns.end()
    turns.end()
    async with turns.alone(seconds=60) as is_alone:
        assert is_alone


async def test_an_error_of_the_block_opens_again() -> None:
    turns = Turns()
    with pytest.raises(LookupError):
        async with turns.alone(seconds=60):
            raise LookupError
    await asyncio.wait_for(turns.begin(), 30)


async def test_a_loop_has_one_of_them() -> None:
    assert Turns.here() is Turns.here()
    assert await asyncio.to_thread(lambda: asyncio.run(_here())) is not Turns.here()


async def _here() -> Turns:
    return Turns.here()


async def test_others_wait_for_no_longer_than_they_have_to() -> None:
    """Who is alone and doesn't end runs on, beside them; the next one can be alone again."""
    turns = Turns()
    async with turns.alone(seconds=60, most_seconds=0.01) as is_alone:
        assert is_alone
        await asyncio.wait_for(turns.begin(), 30)
        turns.end()
        async with turns.alone(seconds=60, most_seconds=60) as is_next:
            assert is_next
    assert turns.is_open
