"""Commands of sagas: what they cause names them, and their saga is told if they become dead letters."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from hybridkit.context import RequestContext, bind, current
from hybridkit.contract import Emission
from hybridkit.dataservice._outbox._protocol import envelope_of
from hybridkit.errors import InvalidRequestError, RejectedError, UnavailableError, UnroutableError
from hybridkit.events import Command, EventEnvelope, ReplyTo, decode_envelope
from hybridkit.messaging._consuming import _settlement as settlement_module
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._pause_gate import PauseGate
from hybridkit.messaging._consuming._processor import Processor
from hybridkit.retry import Retry
from hybridkit.sagas._messages import CommandFailed
from tests.helpers.consuming import QUEUE, FakeGuard, Happened, Steps, delivery, failing, processor

SAGA = ReplyTo(queue="shop.place_order", saga_id=UUID(int=7))


class Charge(Command, queue=QUEUE, type="command.replies_charge"):
    amount: int


def command(**changes: Any) -> bytes:
    """A command of the saga as it travels."""
    with bind(RequestContext(request_id="req-1", user_id="ann")):
        envelope = EventEnvelope[Charge].wrap(Charge(amount=1), service="shop")
    wire = json.loads(envelope.model_copy(update={"reply_to": SAGA}).encode())
    return json.dumps({**wire, **changes}).encode()


def charging(steps: Steps, *errors: BaseException, guard: FakeGuard | None = None) -> Processor:
    """A consumer of the command whose handler raises these."""
    fail = failing(*errors)

    async def charge(command: Charge) -> None:
        await fail(Happened(number=command.amount))

    handlers = Handlers(QUEUE)
    handlers.add(Charge, charge, Retry.immediate(attempts=1))
    return Processor(
        QUEUE, handlers, publisher=steps, providers={}, guard=guard, timeout_seconds=5, gate=PauseGate(QUEUE)
    )


def told(steps: Steps) -> tuple[str, EventEnvelope[Any]]:
    """The queue and the content of the first message that was published."""
    return steps.copies[0].routing_key, decode_envelope(steps.copies[0].body)


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.mark.parametrize("guarded", [False, True])
async def test_the_saga_of_a_command_is_told_before_it_is_a_dead_letter(steps: Steps, guarded: bool) -> None:
    """It learns which command has failed and why; the news has the command's request and names it as its cause."""
    body = command()
    guard = FakeGuard(steps) if guarded else None
    await charging(steps, RejectedError("no such card"), guard=guard).process(delivery(steps, body))
    assert [line for line in steps.log if "finish" not in line] == ["copy to ", "copy to hk.dlx", "ack 7"]
    queue, news = told(steps)
    sent = decode_envelope(body)
    assert (queue, news.service, news.request_id, news.user_id) == (SAGA.queue, QUEUE, "req-1", "ann")
    assert news.causation_id == sent.event_id
    assert news.data == CommandFailed(
        saga_id=SAGA.saga_id,
        command_type="command.replies_charge",
        command_id=sent.event_id,
        reason="permanent",
        error_type="hybridkit.errors.RejectedError",
    )


async def test_the_news_is_the_same_after_a_crash_and_another_after_a_redrive(steps: Steps) -> None:
    """Its id derives from the command's claim, which a redrive begins anew."""
    headers: list[dict[str, Any] | None] = [None, {"hk_attempt": 3}, {"hk_generation": 1}]
    ids: list[UUID] = []
    body = command()
    for each in headers:
        steps.copies.clear()
        failed = charging(steps, RejectedError("no"))
        await failed.process(delivery(steps, body, each))
        ids.append(told(steps)[1].event_id)
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": {"amount": "much"}}, "malformed"),
        ({"version": 9}, "unknown_version"),
        ({"event_type": "command.nobody_knows"}, "unknown_type"),
    ],
    ids=["data", "version", "type"],
)
async def test_the_saga_is_told_of_a_command_that_can_not_be_read(
    steps: Steps, changes: dict[str, Any], reason: str
) -> None:
    """As long as the envelope says whose command it was."""
    headers = {"hk_version_waits": 8}
    await charging(steps).process(delivery(steps, command(**changes), headers))
    _, news = told(steps)
    assert (news.data.reason, news.data.saga_id) == (reason, SAGA.saga_id)
    assert steps.copies[1].headers["hk_reason"] == reason


@pytest.mark.parametrize(
    "body",
    [
        command(reply_to=None),
        command(reply_to={"queue": "shop.place_order"}),
        command(reply_to={"queue": "no queue", "saga_id": str(uuid4())}),
        command(reply_to="shop.place_order"),
        command(reply_to={"queue": "x" * 128, "saga_id": str(uuid4())}),
        command(event_id="no uuid"),
        b"[]",
    ],
    ids=["none", "half", "no name", "text", "long", "no id", "no envelope"],
)
async def test_nobody_is_told_where_no_saga_is_named(steps: Steps, body: bytes) -> None:
    """There is the dead letter alone, also where the name could not be that of a queue."""
    await charging(steps, RejectedError("no")).process(delivery(steps, body))
    assert steps.log == ["copy to hk.dlx", "ack 7"]


async def test_nobody_is_told_of_an_event(steps: Steps) -> None:
    """Whatever its envelope says: only commands have a saga that waits for them."""
    with bind(RequestContext(request_id="req-1")):
        event = EventEnvelope[Happened].wrap(Happened(number=1), service="shop")
    body = event.model_copy(update={"reply_to": SAGA}).encode()
    await processor(steps, failing(RejectedError("no"))).process(delivery(steps, body))
    assert steps.log == ["copy to hk.dlx", "ack 7"]


@pytest.mark.parametrize(
    "refusal",
    [
        UnroutableError("no such queue", exchange="", routing_key=SAGA.queue),
        RejectedError("the broker refuses it"),
    ],
)
async def test_a_saga_whose_queue_is_gone_holds_nothing_up(steps: Steps, refusal: Exception) -> None:
    """The command becomes a dead letter all the same."""
    steps.refusals = [refusal]
    await charging(steps, RejectedError("no")).process(delivery(steps, command()))
    assert steps.log[-2:] == ["copy to hk.dlx", "ack 7"]
    assert len(steps.copies) == 1


async def test_the_news_is_published_again_until_the_broker_has_it(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only then the dead letter; where the channel closes first, the command comes again."""
    monkeypatch.setattr(settlement_module, "REPUBLISHING", Retry.immediate(attempts=9))
    steps.refusals = [UnavailableError("away"), UnavailableError("away")]
    await charging(steps, RejectedError("no")).process(delivery(steps, command()))
    assert steps.log == ["refused", "refused", "copy to ", "copy to hk.dlx", "ack 7"]
    closed = Steps(is_open=False)
    await charging(closed, RejectedError("no")).process(delivery(closed, command()))
    assert closed.copies == []


async def test_what_a_handler_sends_names_what_it_handles(steps: Steps) -> None:
    """The context of a message has its id, and envelopes and emissions made there have it as their cause."""
    made: list[UUID | None] = []

    async def handle(event: Happened) -> None:
        context = current()
        made.append(context.causation_id)
        made.append(EventEnvelope[Happened].wrap(Happened(number=2), service="shop").causation_id)
        made.append(context.within(5).causation_id)

    body = EventEnvelope[Happened].wrap(Happened(number=1), service="shop").encode()
    await processor(steps, handle).process(delivery(steps, body))
    assert made == [decode_envelope(body).event_id] * 3
    assert current().causation_id is None
    assert RequestContext.from_http_headers({}).causation_id is None


def test_an_emission_is_published_as_its_envelope_says() -> None:
    """A data service writes the bytes that the envelope itself would be."""
    cause = uuid4()
    with bind(RequestContext(request_id="req-1")):
        charge = Charge(amount=1)
        emission = Emission.of(charge, request_id="req-1", user_id=None, causation_id=cause, reply_to=SAGA)
        envelope = EventEnvelope[Charge].wrap(charge, service="shop", causation_id=cause)
    whole = envelope.model_copy(update={"reply_to": SAGA})
    assert envelope_of(emission, service="shop") == whole.encode()
    assert decode_envelope(whole.encode()).reply_to == SAGA
    assert Emission.model_validate_json(emission.model_dump_json()) == emission


def test_only_a_command_has_a_saga_to_reply_to() -> None:
    """An event has as many readers as there are queues, and none of them answers for it."""
    with pytest.raises(InvalidRequestError, match="can't be sent"):
        Emission.of(Happened(number=1), request_id="r", user_id=None, reply_to=SAGA)
    with pytest.raises(ValidationError):
        ReplyTo(queue="amq.gen-1", saga_id=uuid4())
