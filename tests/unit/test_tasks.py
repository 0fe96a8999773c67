"""Tasks that nobody awaits."""

import asyncio
import gc
from contextvars import Context, ContextVar

import pytest

from hybridkit._tasks import TaskSet, is_set_within, run_isolated

_shade: ContextVar[str] = ContextVar("_shade", default="none")


async def test_an_error_of_a_task_that_nobody_awaits_is_not_reported_as_never_retrieved() -> None:
    """The set asks for it, so asyncio's handler of forgotten errors stays silent."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))

    async def fail() -> None:
        raise ConnectionError

    tasks = TaskSet()
    tasks.start(fail())
    assert await tasks.wait()
    gc.collect()
    assert (len(tasks), reported) == (0, [])


async def test_whoever_awaits_a_task_of_the_set_gets_its_error() -> None:
    """Asking for the error takes it from nobody."""

    async def fail() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await TaskSet().start(fail())


async def test_waiting_ends_at_its_time_and_says_that_a_task_goes_on() -> None:
    """The task is neither cancelled nor forgotten by it."""
    gate = asyncio.Event()
    tasks = TaskSet()
    task = tasks.start(gate.wait(), name="waits")
    assert not await tasks.wait(seconds=0)
    assert list(tasks) == [task]
    assert repr(tasks) == "TaskSet(1 running)"
    gate.set()
    assert await tasks.wait()


async def test_cancelling_ends_the_tasks_that_were_kept_too() -> None:
    """A task that was started elsewhere is a task of the set like the others."""
    tasks = TaskSet()
    task = asyncio.create_task(asyncio.Event().wait())
    tasks.keep(task)
    assert await tasks.cancel()
    assert task.cancelled()


async def test_a_task_runs_in_the_context_it_is_given() -> None:
    """Work that outlives its caller doesn't see the caller's variables."""
    _shade.set("red")

    async def read() -> str:
        return _shade.get()

    tasks = TaskSet()
    assert await tasks.start(read()) == "red"
    assert await tasks.start(read(), context=Context()) == "none"


@pytest.mark.parametrize("is_set", [True, False])
async def test_waiting_for_an_event_says_whether_it_came(is_set: bool) -> None:
    """It waits no longer than it is told, and raises nothing."""
    event = asyncio.Event()
    if is_set:
        event.set()
    assert await is_set_within(event, seconds=0.01) is is_set


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_ends_who_ran_it_too(ending: type[BaseException]) -> None:
    """Work that waits and then ends the process stops the loop, and whoever awaits it gets that same exception."""

    async def work() -> None:
        await asyncio.sleep(0)
        raise ending

    loop = asyncio.new_event_loop()
    try:
        caller = loop.create_task(run_isolated(work(), name="work"))
        with pytest.raises(ending):  # out of the task of its own
            loop.run_until_complete(caller)
        assert not caller.done()
        with pytest.raises(ending):  # and out of its caller's
            loop.run_until_complete(caller)
        assert isinstance(caller.exception(), ending)
    finally:
        loop.close()
