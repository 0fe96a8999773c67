"""A consumer without a broker, whose handler is given to it, and a guard in memory."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, cast

from pamqp.commands import Basic

from hybridkit.errors import MalformedPayloadError
from hybridkit.events import Event, EventEnvelope
from hybridkit.idempotency import Acquired, Finish, Outcome
from hybridkit.messaging._amqp._frames import DeliverMethod, encode_fields, frame_template
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming._delivery import Delivery, Identity
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._consuming._pause_gate import PauseGate
from hybridkit.messaging._consuming._processor import Processor
from hybridkit.messaging._consuming._subscription import Subscription
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.retry import Retry
from tests.helpers import until

QUEUE = "tests.endings"


type Run = Callable[[int], Awaitable[object]]


class Ended(Event, type="endings.ended", key="key"):
    key: str
    number: int


class OfflineConsumer:
    """A consumer without a broker: what its handler is given, and what becomes of the messages.

    Attributes:
        done: the numbers that the handler has done, in their order.
        settled: by number, how the broker was told.
        copies: what was published, by number.
        runs: how often the handler was called, by number.
    """

    def __init__(
        self, run: Run, *, concurrency: int = 2, ordered: bool = False, guard: Any = None, attempts: int = 1
    ) -> None:
        self.done: list[int] = []
        self.settled: dict[int, str] = {}
        self.copies: dict[int, OutgoingMessage] = {}
        self.runs: dict[int, int] = {}
        self.is_open = True
        self._run = run
        self._numbers: dict[bytes, int] = {}
        self.gate = PauseGate(QUEUE)
        lines = KeyedBacklog() if ordered else None
        handlers = Handlers(QUEUE)
        handlers.add(Ended, self._handle, Retry.immediate(attempts=attempts))
        self.processor = Processor(
            QUEUE,
            handlers,
            publisher=cast("Any", self),
            providers={},
            guard=guard,
            timeout_seconds=60,
            gate=self.gate,
            keyed=lines,
        )
        nowhere = cast("Any", None)
        self.consumer = Subscription(
            QUEUE, handlers, nowhere, self.processor, self.gate, concurrency=concurrency, keyed=lines
        )

    async def _handle(self, event: Ended) -> None:
        self.runs[event.number] = self.runs.get(event.number, 0) + 1
        await self._run(event.number)
        self.done.append(event.number)

    def put(self, number: int, *, key: str | None = None, headers: Mapping[str, Any] | None = None) -> None:
        """Deliver it."""
        event = Ended(key=key or str(number), number=number)
        body = EventEnvelope.wrap(event, service="tests").encode()
        self.put_body(number, body, headers=headers)

    def put_body(self, number: int, body: bytes, *, headers: Mapping[str, Any] | None = None) -> None:
        properties = cast("Any", Basic.Properties(headers=cast("Any", headers))).marshal()
        self._numbers[body] = number
        deliver = DeliverMethod(number, False, "hk.events", "endings.ended")
        self.consumer._take(Delivery(QUEUE, self, IncomingMessage(deliver, properties, body)))

    async def settle(self, *numbers: int) -> None:
        """Work until these are settled, and no message runs or waits."""
        if self.consumer._workers._dispatcher is None:
            self.consumer._workers.start()
        await until(lambda: self.settled.keys() >= set(numbers) and self.consumer.in_flight == 0)

    # ── the channel ──────────────────────────────────────────────────────────────────────────────

    def ack(self, tag: int, finished: Identity | None) -> None:
        del finished
        self.settled.setdefault(tag, "ack")

    def requeue(self, tag: int) -> None:
        self.settled[tag] = "requeue"

    def reject(self, tag: int) -> None:
        self.settled[tag] = "reject"

    def give_back(self) -> None:
        self.is_open = False

    def was_finished(self, event: Identity) -> bool:
        return not event

    # ── the publisher ────────────────────────────────────────────────────────────────────────────

    async def forward(self, message: OutgoingMessage) -> None:
        try:
            encode_fields(message.headers)
            frame_template(message.exchange, message.routing_key, message.message_type, message.service)
        except (TypeError, ValueError) as error:
            raise MalformedPayloadError("AMQP can't carry it") from error
        self.copies[self._numbers[message.body]] = message

    def renew_topology(self, *, reason: str) -> None:
        raise AssertionError(reason)


class Memory:
    """A guard that lets everything run, and fails where it is told to.

    Attributes:
        takeovers: of each claim.
    """

    def __init__(self, *errors: BaseException, takeovers: int = 0) -> None:
        self.errors = list(errors)
        self.takeovers = takeovers
        self.outcomes: list[Outcome] = []

    async def begin(self, key: str, payload: object, *, wait_seconds: float = 0.0) -> Acquired:
        del payload, wait_seconds
        if self.errors:
            raise self.errors.pop()
        return Acquired(
            key=key,
            token="t",
            fence=1,
            taken_over=False,
            guarded=True,
            fingerprint="f",
            takeovers=self.takeovers,
        )

    def hold(self, _: Acquired, *, bound: bool = True) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def finish(self, _: Acquired, outcome: Outcome, result: object = None) -> Finish:
        del result
        self.outcomes.append(outcome)
        return Finish.OK
