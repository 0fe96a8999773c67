"""What every thread and every task of the process does at this moment, as text for a developer."""

import asyncio
import io
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Final

MAX_TASKS: Final = 1000
"""How many tasks are shown; of more, the number is told."""
_MAX_FRAMES: Final = 50


def render_stacks() -> str:
    """Return the stack of each thread, and of each task of the running loop, the longest waiting first."""
    return "\n".join([*_threads(), *_tasks()])


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented, in spite of its name
        stack = traceback.format_stack(frame, limit=-_MAX_FRAMES)
        yield f"thread {names.get(ident, ident)}\n{''.join(stack)}"


def _tasks() -> Iterator[str]:
    tasks = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    for task in tasks[:MAX_TASKS]:
        told = io.StringIO()
        task.print_stack(limit=_MAX_FRAMES, file=told)
        yield f"task {task.get_name()}\n{told.getvalue()}"
    if len(tasks) > MAX_TASKS:
        yield f"and {len(tasks) - MAX_TASKS} more tasks\n"
