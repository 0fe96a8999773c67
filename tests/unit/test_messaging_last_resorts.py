"""What a consumer does when what it relies on fails: the log it reads, its policy, its own task."""

import asyncio
from typing import Any, cast

import pytest
from aiormq.exceptions import AMQPError

from hybridkit.errors import NotConnectedError
from hybridkit.events import EventEnvelope
from hybridkit.messaging._amqp._frames import DeliverMethod
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._parked_keys import Mark, ParkedKeys
from hybridkit.retry import Retry
from tests.helpers.offline_consumer import QUEUE, Ended, OfflineConsumer
from tests.unit.test_messaging_parking import Broker, mark, read


def delivered(offline: OfflineConsumer) -> Delivery:
    """Return delivery number 1, which no worker has taken."""
    body = EventEnvelope.wrap(Ended(key="a", number=1), service="tests").encode()
    return Delivery(
        QUEUE, offline, IncomingMessage(DeliverMethod(1, False, "hk.events", "endings.ended"), b"\0\0", body)
    )


async def test_a_log_that_the_broker_refuses_to_deliver_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The refusal says which queue was read and why, and the next attempt reads the whole log."""
    broker, keys = Broker(mark("a", "1")), ParkedKeys(QUEUE)

    async def refuse(*_: object) -> None:
        raise AMQPError("access refused")

    with monkeypatch.context() as patch:
        patch.setattr(broker, "_consume", refuse)
        with pytest.raises(NotConnectedError, match=r"reading tests\.endings\.parked: AMQPError: .*refused"):
            await read(broker, keys)
    assert await read(broker, keys) == {"a": Mark(0, "1")}


@pytest.mark.parametrize("part", [2, 3])
async def test_a_part_of_a_fold_whose_beginning_is_missing_says_nothing(part: int) -> None:
    """What it would have changed stays as the entries before it say."""
    rest = {"key": None, "fold": "f", "part": part, "of": part, "marks": [["b", 0, "9"]]}
    assert await read(Broker(mark("a", "1"), rest)) == {"a": Mark(0, "1")}


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
async def test_a_retry_policy_cannot_swallow_the_end_of_the_process(
    end: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the process while a policy decides goes on, and the broker is told nothing of the message."""

    class Ending(type):
        def __instancecheck__(cls, _: object) -> bool:
            raise end

    class NeverError(Exception, metaclass=Ending): ...

    async def fail(_: int) -> None:
        raise ValueError

    monkeypatch.setattr(Retry, "immediate", lambda attempts: Retry(attempts=attempts).never(NeverError))
    offline = OfflineConsumer(fail)
    with pytest.raises(end):
        await offline.processor.process(delivered(offline))
    assert offline.runs == {1: 1}
    assert not offline.settled
    assert not offline.copies


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_a_message_that_is_settled_does_not_go_back_when_its_task_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, *, ordered: bool
) -> None:
    """The broker has its acknowledgement, so neither the message nor its channel is given back."""
    offline, settled = OfflineConsumer(cast("Any", None), ordered=ordered), asyncio.Event()

    async def settle_and_linger(delivery: Delivery) -> None:
        delivery.ack(finished=False)
        settled.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(offline.processor, "process", settle_and_linger)
    task = asyncio.create_task(offline.consumer._handle(delivered(offline)))
    await asyncio.wait_for(settled.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert offline.settled == {1: "ack"}
    assert offline.is_open
