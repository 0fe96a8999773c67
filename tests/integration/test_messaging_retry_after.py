"""A message whose handler was told when to come back comes again then, and not before."""

import time

import httpx
import pytest
from aiogram.exceptions import TelegramRetryAfter
from aiogram.methods import SendMessage

from hybridkit.errors import RateLimitedError
from hybridkit.events import Event
from hybridkit.messaging import BrokerConnection, Order, RobustConsumer, RobustPublisher
from hybridkit.retry import Retry
from tests.helpers.consumers import Ledger

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]

ASKED_SECONDS = 2


class Told(Event, type="retry_after.told", key="library"):
    library: str = ""


def error_of(library: str) -> Exception:
    """Return the error by which a library passes on the wait that a server wants."""
    match library:
        case "aiogram":
            method = SendMessage(chat_id=7, text="hello")
            return TelegramRetryAfter(method, "Too Many Requests", retry_after=ASKED_SECONDS)
        case "httpx":
            request = httpx.Request("GET", "http://service")
            response = httpx.Response(503, headers={"retry-after": f"{ASKED_SECONDS}"})
            return httpx.HTTPStatusError("busy", request=request, response=response)
        case _:
            return RateLimitedError("slowly", retry_after_seconds=ASKED_SECONDS)


@pytest.mark.parametrize("order", [None, Order.SKIP], ids=["unordered", "ordered"])
async def test_no_message_comes_again_before_its_time(
    publisher: RobustPublisher, connection: BrokerConnection, order: Order | None
) -> None:
    """Whichever library the error is of, and however short the pauses of the policy are."""
    consumer, done = RobustConsumer("tests.retry_after", order=order), Ledger()
    failed: dict[str, float] = {}
    waited: dict[str, float] = {}

    @consumer.on(Told, retry=Retry.exponential(first_seconds=0.01, cap_seconds=0.02, attempts=3))
    async def handle(event: Told) -> None:
        if event.library not in failed:
            failed[event.library] = time.monotonic()
            raise error_of(event.library)
        waited[event.library] = time.monotonic() - failed[event.library]
        await done.add(event.library)

    async with consumer.running(connection, publisher=publisher):
        for library in ("aiogram", "httpx", "ours"):
            await publisher.publish(Told(library=library))
        assert set(await done.reaches(3)) == {"aiogram", "httpx", "ours"}
    assert all(seconds >= ASKED_SECONDS for seconds in waited.values()), waited
