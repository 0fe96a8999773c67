"""The end of a delivery: which copy is published, in which order, and when the original is acknowledged."""

from typing import Any, cast

import orjson
import pytest

from hybridkit.errors import (
    NotConnectedError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    UnroutableError,
)
from hybridkit.idempotency import (
    Begin,
    Completed,
    Failed,
    InProgress,
)
from hybridkit.messaging._amqp._frames import encode_fields
from hybridkit.messaging._consuming import _delivery as delivery_module
from hybridkit.messaging._consuming import _processor as processor_module
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.retry import Retry
from tests.helpers.consuming import (
    QUEUE,
    FakeGuard,
    Happened,
    Steps,
    delivery,
    envelope,
    failing,
    processor,
    succeed,
    wire,
)

pytestmark = pytest.mark.usefixtures("logs", "instant_retries")


@pytest.mark.parametrize("redelivered", [True, False], ids=["redelivered", "published again"])
async def test_finished_work_whose_acknowledgement_was_lost_is_not_done_again(
    steps: Steps, redelivered: bool
) -> None:
    """Only where the broker says that we had this message before."""
    body = envelope()
    steps.is_open = False
    await processor(steps, succeed).process(delivery(steps, body))
    assert len(steps.finished) == 1
    steps.is_open = True

    async def handle(event: Happened) -> None:
        steps.log.append("again")

    await processor(steps, handle).process(delivery(steps, body, redelivered=redelivered))
    assert steps.log == (["ack 7"] if redelivered else ["again", "ack 7"])


async def test_what_moved_on_as_a_copy_is_not_finished(steps: Steps) -> None:
    """The copy is the same event: it must not be taken for the one that was here."""

    async def handle(event: Happened) -> None:
        raise OSError

    async def forward(message: OutgoingMessage) -> None:
        steps.is_open = False

    steps.forward = forward  # type: ignore[method-assign]
    await processor(steps, handle, retry=Retry.exponential(first_seconds=9)).process(
        delivery(steps, envelope())
    )
    assert steps.finished == set()


async def test_only_a_last_attempt_is_reported(steps: Steps, reported: list[BaseException]) -> None:
    """An error that a retry may cure is expected."""
    first, last = OSError("away"), OSError("still away")
    handle = failing(first, last)
    await processor(steps, handle, retry=Retry.exponential(first_seconds=9)).process(
        delivery(steps, envelope())
    )
    assert reported == []
    await processor(steps, handle, retry=Retry.immediate(attempts=1)).process(delivery(steps, envelope()))
    assert reported == [last]


async def test_a_copy_is_published_until_the_broker_has_it(steps: Steps) -> None:
    """The original stays unacknowledged meanwhile; a missing delay level is declared again."""
    unroutable = UnroutableError("nobody", exchange="hk.dlx", routing_key="q")
    steps.refusals = [NotConnectedError("away"), unroutable]
    await processor(steps, failing(OSError())).process(delivery(steps, envelope()))
    assert steps.log == ["refused", "refused", "topology renewed", "copy to hk.dlx", "ack 7"]


async def test_a_message_whose_copy_is_too_large_for_the_broker_is_rejected(steps: Steps) -> None:
    """It has a lower limit by now. Others on the same channel don't know their fate, and are published again."""
    too_large = PayloadTooLargeError("too large", size_bytes=10, limit_bytes=9)
    steps.refusals = [OutcomeUnknownError("the channel closed"), too_large, too_large]
    await processor(steps, failing(OSError())).process(delivery(steps, envelope()))
    assert steps.log == ["refused", "refused", "refused", "reject 7", "ack 7"]


@pytest.mark.parametrize("attempts", [1, 2], ids=["dead letter", "retry"])
async def test_a_copy_whose_headers_fit_into_no_frame_goes_without_most_of_them(
    steps: Steps, attempts: int
) -> None:
    """A broker with a small `frame_max` still learns why it is a dead letter, and how often it was tried."""
    steps.refusals = [PayloadTooLargeError("too large", size_bytes=9000, limit_bytes=8000)]
    moved = delivery(steps, envelope(), {"tenant": "x" * 9000, "hk_generation": 2})
    retry = Retry.exponential(first_seconds=9, attempts=attempts)
    await processor(steps, failing(OSError("no " * 300)), retry=retry).process(moved)
    headers = steps.copies[0].headers
    assert (steps.log[0], steps.log[-1]) == ("refused", "ack 7")
    assert (headers["hk_attempt"], headers["hk_generation"], headers["hk_queue"]) == (1, 2, QUEUE)
    assert not headers.keys() & {"tenant", "hk_stack"}
    assert len(encode_fields(headers)) < 2000
    if attempts == 1:
        assert headers["hk_reason"] == "exhausted"


async def test_no_copy_is_made_of_a_message_that_comes_again_anyway(steps: Steps) -> None:
    """Its channel has closed, so the broker delivers it again."""

    async def handle(event: Happened) -> None:
        steps.is_open = False
        raise OSError

    for retry in (Retry.immediate(attempts=1), Retry.exponential(first_seconds=9)):
        await processor(steps, handle, retry=retry).process(delivery(steps, envelope()))
    assert steps.log == []


async def in_order(
    steps: Steps, body: bytes, handler: Any = succeed, **options: Any
) -> tuple[KeyedBacklog, Delivery]:
    """One run of a message in the backlog of its key."""
    backlog = KeyedBacklog()
    backlog.put(delivery(steps, body))
    first = await backlog.get()
    await processor(steps, handler, keyed=backlog, **options).process(first)
    backlog.done(first)
    return backlog, first


async def test_in_order_a_retry_waits_in_front_of_its_key(steps: Steps) -> None:
    """No copy is made, and nothing is acknowledged: the message waits in the backlog, in front of its key."""
    backlog, _ = await in_order(
        steps, envelope(), failing(OSError()), retry=Retry.exponential(first_seconds=30)
    )
    assert steps.log == []
    assert len(backlog) == 1
    backlog.stop()


async def test_in_order_failures_are_remembered(steps: Steps) -> None:
    """Also when the message comes again on another channel: there is no copy that could count them."""
    backlog = KeyedBacklog()
    same = processor(steps, failing(*[OSError()] * 3), retry=Retry.exponential(attempts=3), keyed=backlog)
    body = envelope()
    for _ in range(3):
        backlog.put(delivery(steps, body))
        run = await backlog.get()
        await same.process(run)
        backlog.stop()
        backlog = same._settlement._keyed = KeyedBacklog()
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert steps.copies[0].headers["hk_attempt"] == 3
    assert same._failures == {}


async def test_in_order_not_everything_is_remembered(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten: it has been gone for long, or begins its attempts anew."""
    monkeypatch.setattr(processor_module, "MAX_REMEMBERED", 1)
    backlog = KeyedBacklog()
    same = processor(steps, failing(*[OSError()] * 2), retry=Retry.exponential(attempts=3), keyed=backlog)
    first, second = Happened(number=1), Happened(number=2)
    for event in (first, second):
        backlog.put(delivery(steps, envelope(event)))
        await same.process(await backlog.get())
    backlog.stop()
    assert list(same._failures) == [f"{QUEUE}:tests:{second.event_id}:0"]


@pytest.mark.parametrize("answer", [InProgress(20_000), InProgress(10)], ids=["running", "nearly done"])
async def test_in_order_another_holder_is_waited_for_here(steps: Steps, answer: Begin) -> None:
    """A message whose claim another process holds waits in front of its key, and not in a delay level."""
    backlog, _ = await in_order(steps, envelope(), guard=FakeGuard(steps, answer))
    assert steps.log == []
    assert len(backlog) == 1
    backlog.stop()


async def test_in_order_what_waited_too_long_gives_all_back(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the broker closes the channel, all of its messages go back, in their order."""
    monkeypatch.setattr(delivery_module, "MAX_UNACKED_SECONDS", 1.0)
    backlog, first = await in_order(steps, envelope())
    assert steps.log == ["given back"]
    assert len(backlog) == 0
    assert not first.is_ours


async def test_in_order_what_comes_again_anyway_holds_nobody(steps: Steps) -> None:
    """A retry of a message whose channel has closed does not wait in the backlog."""

    async def handle(event: Happened) -> None:
        steps.is_open = False
        raise OSError

    backlog, _ = await in_order(steps, envelope(), handle, retry=Retry.exponential(first_seconds=30))
    assert len(backlog) == 0


async def test_in_order_a_newer_version_holds_its_key(steps: Steps) -> None:
    """Until a process that knows it takes over, or a quarter of an hour."""
    backlog, first = await in_order(steps, wire(version=2))
    assert steps.log == []
    assert len(backlog) == 1
    backlog.stop()
    first.received_at -= 915
    await processor(steps, succeed, keyed=backlog).process(first)
    assert steps.copies[0].headers["hk_reason"] == "unknown_version"


async def test_in_order_what_has_no_key_waits_in_a_delay_level(steps: Steps) -> None:
    """Nothing says whom it would hold up."""
    body = wire(version=2, data={})
    backlog, _ = await in_order(steps, body)
    assert steps.log == ["copy to hk.delay.L2", "ack 7"]
    assert len(backlog) == 0


async def parking(steps: Steps, parked: ParkedKeys, *messages: bytes, **options: Any) -> None:
    """Messages one after another, as far as their key lets them."""
    backlog = KeyedBacklog()
    same = processor(steps, options.pop("handler", succeed), keyed=backlog, parked=parked, **options)
    for body in messages:
        backlog.put(delivery(steps, body, options.get("headers")))
        run = await backlog.get()
        await same.process(run)
        backlog.done(run)


async def test_a_key_is_marked_before_its_dead_letter(steps: Steps) -> None:
    """A crash in between parks a key whose message comes again; the other way round its successors would run."""
    parked, first = ParkedKeys(QUEUE), Happened(number=1)
    await parking(steps, parked, envelope(first), handler=failing(OSError()))
    assert steps.log == ["copy to ", "copy to hk.dlx", "ack 7"]
    mark = orjson.loads(steps.copies[0].body)
    assert steps.copies[0].routing_key == f"{QUEUE}.parked"
    assert mark == {"key": "1", "generation": 0, "last": str(first.event_id)}


async def test_what_comes_after_a_parked_one_follows_it(steps: Steps) -> None:
    """Successors with its key become dead letters without a run, and the newest of them is the last of the mark."""
    parked, third = ParkedKeys(QUEUE), Happened(number=1)
    bodies = [envelope(Happened(number=1)), envelope(Happened(number=2)), envelope(third)]
    await parking(steps, parked, *bodies, handler=failing(OSError()))
    dead = [copy for copy in steps.copies if copy.exchange]
    assert [copy.headers["hk_reason"] for copy in dead] == ["exhausted", "key_parked"]
    assert parked.is_last("1", str(third.event_id))
    assert not parked.holds("2", 0)


async def test_a_mark_that_nobody_took_buries_nothing(steps: Steps) -> None:
    """The queue of marks is gone; subscribing again declares it."""
    steps.refusals = [UnroutableError("gone", exchange="", routing_key="q")]
    await parking(steps, ParkedKeys(QUEUE), envelope(), handler=failing(OSError()))
    assert steps.log == ["refused", "given back"]


async def test_what_was_given_up_elsewhere_has_parked_its_key(steps: Steps) -> None:
    """By a process that was thought dead: what is known here may be older."""
    parked = ParkedKeys(QUEUE)
    open_channel = parked._read_on = cast("Any", object())
    await parking(steps, parked, envelope(), guard=FakeGuard(steps, Completed(None)))
    assert parked._read_on is open_channel
    await parking(steps, parked, envelope(), guard=FakeGuard(steps, Failed(None)))
    assert parked._read_on is None


async def test_what_can_not_be_read_parks_nothing(steps: Steps) -> None:
    """A malformed message has no key, so it is a dead letter alone."""
    await parking(steps, ParkedKeys(QUEUE), wire(data={"number": "x"}))
    assert steps.log == ["copy to hk.dlx", "ack 7"]
