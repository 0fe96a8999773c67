"""Deliveries without a broker: fakes of the channel, the publisher and the guard, and a processor over them."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import orjson
from pamqp.commands import Basic

from hybridkit.context import Claim, RequestContext, bind, current
from hybridkit.errors import (
    ClaimLostError,
)
from hybridkit.events import Event, EventEnvelope
from hybridkit.idempotency import (
    Acquired,
    Begin,
    Finish,
    Outcome,
)
from hybridkit.messaging._amqp._frames import DeliverMethod
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming._delivery import Delivery, Identity
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._consuming._pause_gate import PauseGate
from hybridkit.messaging._consuming._processor import Processor
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.retry import Retry

QUEUE = "tests.queue"


class Happened(Event, type="processor.happened", key="number"):
    number: int


@dataclass
class Steps:
    """Everything that happened, in order, and the fakes that wrote it down."""

    log: list[str] = field(default_factory=list[str])
    copies: list[OutgoingMessage] = field(default_factory=list[OutgoingMessage])
    refusals: list[Exception] = field(default_factory=list[Exception])
    is_open: bool = True

    finished: set[Identity] = field(default_factory=set[Identity])

    # the channel
    def ack(self, tag: int, finished: Identity | None) -> None:
        if self.is_open:
            self.log.append(f"ack {tag}")
        elif finished is not None:
            self.finished.add(finished)

    def requeue(self, tag: int) -> None:
        self.log.append(f"requeue {tag}")

    def reject(self, tag: int) -> None:
        self.log.append(f"reject {tag}")

    def give_back(self) -> None:
        self.is_open = False
        self.log.append("given back")

    def was_finished(self, event: Identity) -> bool:
        return event in self.finished

    # the publisher
    async def forward(self, message: OutgoingMessage) -> None:
        if self.refusals:
            self.log.append("refused")
            raise self.refusals.pop(0)
        self.copies.append(message)
        self.log.append(f"copy to {message.exchange}")

    def renew_topology(self, *, reason: str) -> None:
        self.log.append("topology renewed")


class FakeGuard:
    """Answers what it is told to, and writes down what it is asked."""

    def __init__(self, steps: Steps, *answers: Begin | Exception, finish: Finish = Finish.OK) -> None:
        self.steps = steps
        self.answers = list(answers)
        self.keys: list[str] = []
        self.payloads: list[Any] = []
        self.lost = False
        self._finish = finish

    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.0) -> Begin:
        self.keys.append(key)
        self.payloads.append(payload)
        answer = self.answers.pop(0) if self.answers else given(key)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @asynccontextmanager
    async def hold(self, acquired: Acquired, *, bound: bool = True) -> AsyncGenerator[None]:
        with bind(replace(current(), claim=Claim(acquired.key))):
            yield
        if self.lost:
            raise ClaimLostError("another holder")

    async def finish(self, acquired: Acquired, outcome: Outcome, result: Any = None) -> Finish:
        self.steps.log.append(f"finish {outcome.name}")
        return self._finish


def given(key: str = "k:e:1") -> Acquired:
    return Acquired(key=key, token="t", fence=1, taken_over=False, guarded=True, fingerprint="f")


def delivery(
    steps: Steps, body: bytes, headers: dict[str, Any] | None = None, *, redelivered: bool = False
) -> Delivery:
    properties = Basic.Properties(headers=headers, message_type="processor.happened", app_id="tests")
    deliver = DeliverMethod(7, redelivered, "hk.events", "processor.happened")
    return Delivery(QUEUE, steps, IncomingMessage(deliver, cast("Any", properties).marshal(), body))


def envelope(message: Event | None = None) -> bytes:
    with bind(RequestContext(request_id="req-1", user_id="ann")):
        return EventEnvelope.wrap(message or Happened(number=1), service="tests").encode()


def wire(**changes: object) -> bytes:
    known: dict[str, Any] = orjson.loads(envelope())
    return orjson.dumps({**known, **changes})


def processor(
    steps: Steps,
    handler: Callable[..., Awaitable[object]],
    *,
    retry: Retry | None = None,
    guard: FakeGuard | None = None,
    timeout_seconds: float = 5.0,
    gate: PauseGate | None = None,
    keyed: KeyedBacklog | None = None,
    parked: ParkedKeys | None = None,
) -> Processor:
    handlers = Handlers(QUEUE)
    handlers.add(Happened, handler, retry or Retry.immediate(attempts=1))
    return Processor(
        QUEUE,
        handlers,
        publisher=steps,
        providers={},
        guard=guard,
        timeout_seconds=timeout_seconds,
        gate=gate or PauseGate(QUEUE),
        keyed=keyed,
        parked=parked,
    )


async def succeed(event: Happened) -> None: ...


def failing(*errors: BaseException) -> Callable[[Happened], Awaitable[None]]:
    """A handler that raises these, one per run, and then succeeds."""
    left = list(errors)

    async def handle(event: Happened) -> None:
        if left:
            raise left.pop(0)

    return handle
