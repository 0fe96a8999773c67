"""Dead letters at least once: what nobody takes is kept, holds up the others, and is tried again."""

import asyncio

import pytest

from hybridkit.dev._broker import _dead_letters
from hybridkit.dev._broker._arguments import QueueSettings
from hybridkit.dev._broker._dead_letters import PREFETCH, DeadLetters
from hybridkit.dev._broker._messages import Message, Reason
from hybridkit.dev._broker._properties import Properties
from tests.helpers import until


class Router:
    """Takes letters, or doesn't."""

    def __init__(self) -> None:
        self.takes = False
        self.taken: list[bytes] = []
        self.asked = asyncio.Event()

    def deliver_dead_letter(self, dead_letter: Message, reason: Reason) -> bool:
        self.asked.set()
        if self.takes:
            self.taken.append(dead_letter.body)
        return self.takes


def message(body: bytes) -> Message:
    return Message("", ("queue",), Properties(b"\0\0"), body)


def dead_letters(router: Router, *, at_least_once: bool) -> DeadLetters:
    settings = QueueSettings(dead_letter_exchange="dlx", is_at_least_once=at_least_once)
    return DeadLetters("queue", settings, router)


async def test_what_nobody_takes_comes_again_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many at once, and the others after them."""
    monkeypatch.setattr(_dead_letters, "RETRY_SECONDS", 0.01)
    router = Router()
    letters = dead_letters(router, at_least_once=True)
    bodies = [str(number).encode() for number in range(PREFETCH + 8)]
    for body in bodies:
        letters.send(message(body), "expired", was_delivered=False)
    assert letters.pending == len(bodies)
    router.asked.clear()
    await router.asked.wait()
    assert router.taken == []
    router.takes = True
    await until(lambda: not letters.pending)
    assert router.taken == bodies
    letters.close()


async def test_at_most_once_forgets_what_nobody_takes() -> None:
    """As classic queues do."""
    letters = dead_letters(Router(), at_least_once=False)
    letters.send(message(b""), "rejected", was_delivered=True)
    assert letters.pending == 0
    assert repr(letters) == "DeadLetters('queue', pending=0)"


async def test_a_queue_that_has_gone_has_no_letters() -> None:
    """And doesn't try again."""
    letters = dead_letters(Router(), at_least_once=True)
    for number in range(3):
        letters.send(message(bytes([number])), "maxlen", was_delivered=False)
    letters.close()
    assert letters.pending == 0
