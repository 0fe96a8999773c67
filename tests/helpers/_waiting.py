"""Wait for what tells nobody that it has happened."""

# Bound here: a test may put a clock of its own in the place of asyncio's.
from asyncio import sleep, timeout
from collections.abc import Awaitable, Callable

QUICK_LOOKS = 20
FIRST_PAUSE_SECONDS = 0.001
LONGEST_PAUSE_SECONDS = 0.02


async def until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Wait until the condition is true, or fail.

    Looks between two turns of the event loop at first, which is mostly enough within one process, then ever less often.

    Args:
        condition: Says whether it has happened; the result may be awaitable.
        seconds: After how long a `TimeoutError` ends it: far longer than it takes, even on a busy machine.
    """
    looks, pause = 0, FIRST_PAUSE_SECONDS
    async with timeout(seconds):
        while not await _holds(condition):
            looks += 1
            if looks < QUICK_LOOKS:
                await sleep(0)
            else:
                await sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def _holds(condition: Callable[[], object]) -> bool:
    answer = condition()
    return bool(await answer if isinstance(answer, Awaitable) else answer)
