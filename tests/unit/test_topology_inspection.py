"""Questions to a broker that answers by closing the channel, or not at all."""

from collections.abc import Coroutine
from typing import Any, cast

import pytest
from aiormq.exceptions import AMQPError, ChannelPreconditionFailed
from pamqp.commands import Queue as QueueMethods

from hybridkit.errors import DeclarationError, HybridkitError, NotConnectedError
from hybridkit.messaging import Exchange, Queue
from hybridkit.messaging._topology._inspection import Inspection


class Channel:
    """A channel that answers passive declares, and refuses all else with the error."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.is_closed = True

    async def queue_declare(self, name: str, *, passive: bool = False, **_: Any) -> QueueMethods.DeclareOk:
        if passive:
            return QueueMethods.DeclareOk(queue=name, message_count=1, consumer_count=0)
        raise self.error

    async def exchange_declare(self, *_: Any, **__: Any) -> None:
        raise self.error


class Connected:
    """A connection that counts its channels, which refuse everything."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.channels = 0

    async def channel(self, *, confirms: bool) -> Channel:
        assert not confirms
        self.channels += 1
        return Channel(self.error)

    async def ask(self, work: Coroutine[Any, Any, Any], **_: Any) -> Any:
        return await work


async def test_a_broker_that_repeats_itself_is_not_asked_for_ever() -> None:
    """A property whose value can't be declared is named once, with the broker's error."""
    said = "inequivalent arg 'x-a' for queue 'q' in vhost '/': received '1' but current is 'what?'"
    connection = Connected(ChannelPreconditionFailed(said))
    async with Inspection(cast("Any", connection)) as inspection:
        found = await inspection.compare_queue(Queue(name="q", arguments={"x-a": 1}))
    assert [(each.name, each.actual) for each in found.differences] == [("x-a", "what?")]
    assert found.refusal == said
    assert found.messages == 1
    assert connection.channels == 2


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(AMQPError("lost"), NotConnectedError), (ValueError("too long"), DeclarationError)],
)
async def test_other_failures_are_errors_of_ours(raised: Exception, expected: type[HybridkitError]) -> None:
    """A lost connection and a name that AMQP can't carry become typed errors with the same words."""
    async with Inspection(cast("Any", Connected(raised))) as inspection:
        with pytest.raises(expected, match=str(raised)):
            await inspection.compare_exchange(Exchange(name="e", kind="topic"))
        assert "Inspection(" in repr(inspection)
