"""Wait for a library's blocking flush no longer than there is time."""

import asyncio
import threading
from collections.abc import Callable


async def flushed_within(flush: Callable[[], object], *, seconds: float, what: str) -> bool:
    """Run a blocking flush in a thread, and return whether it ended in time; otherwise it is left behind.

    Args:
        flush: may block, as its other end may not answer.
        seconds: the time that it has.
        what: the name of the thread.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        flush()
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    # A daemon thread of its own: the loop's executor is joined at the end of `asyncio.run`, however long it takes.
    threading.Thread(target=run, name=f"hybridkit-flush-{what}", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            await done.wait()
    except TimeoutError:
        return False
    return True
