"""Wait for what tells nobody that it has happened."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Final, overload

FIRST_PAUSE_SECONDS: Final = 0.005
LONGEST_PAUSE_SECONDS: Final = 0.1


@overload
async def until[T](
    look: Callable[[], Awaitable[T | None]], what: str, *, timeout_seconds: float = 30
) -> T: ...


@overload
async def until[T](look: Callable[[], T | None], what: str, *, timeout_seconds: float = 30) -> T: ...


async def until(look: Callable[[], Any], what: str, *, timeout_seconds: float = 30) -> Any:
    """Call a function again and again until it returns something true, and return that.

    Args:
        look: a function, async or not, without effects.
        what: the thing that is waited for, in the words of the error.
        timeout_seconds: the longest time to wait.

    Raises:
        TimeoutError: nothing true was returned in that time; the message names the thing that was waited for.
    """
    pause = FIRST_PAUSE_SECONDS
    limit = asyncio.timeout(timeout_seconds)
    try:
        async with limit:
            while not (found := await _called(look)):
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            return found
    except TimeoutError:
        if not limit.expired():
            raise  # the function's own
        raise TimeoutError(f"waited {timeout_seconds:g} s in vain for {what}") from None


async def _called(look: Callable[[], Any]) -> Any:
    found = look()
    return await found if isawaitable(found) else found
