"""Run a saga in a test: the real engine on a fake data service, with a clock that the test moves, and no broker.

```python
async with SagaBench(place_order) as bench:
    await bench.tell(OrderPlaced(order_id=order_id, total=50))
    await bench.skip(minutes=15)
    assert bench.saga(order_id).status == "undoing"
```
"""

import heapq
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from hybridkit.clients import MongoDataClient, PostgresDataClient, Transport
from hybridkit.codec import encode_json
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.contract import Emission
from hybridkit.errors import NotYetError
from hybridkit.events import Command, Event, EventEnvelope, Message, decode_envelope
from hybridkit.idempotency import claim_key
from hybridkit.messaging import RobustConsumer
from hybridkit.messaging._consuming._delivery import WAIT_SECONDS
from hybridkit.resources._resource import AnyResource
from hybridkit.retry import GiveUp, Retry, RetryAfter
from hybridkit.sagas import SAGAS, Saga, SagaRecord
from hybridkit.sagas._engine import SagaEngine
from hybridkit.sagas._messages import Action, CommandFailed, order_class
from hybridkit.testing._data_service import BASE_URL, FakeDataService
from hybridkit.testing._virtual_clock import VirtualClock

if TYPE_CHECKING:
    from uuid import UUID

MAX_DELIVERIES: Final = 10_000
"""The most deliveries of one step of a test: more is a loop of messages."""


@dataclass(order=True)
class Due:
    """A delivery that is due at some time."""

    at: datetime
    turn: float
    number: int
    target: "_Target" = field(compare=False)
    envelope: EventEnvelope[Any] = field(compare=False)
    attempt: int = field(default=1, compare=False)
    waits: int = field(default=0, compare=False)


@dataclass(frozen=True)
class _Target:
    """A queue: that of the saga, or that of a participant."""

    name: str
    run: Callable[[EventEnvelope[Any], int], Awaitable[object]]
    retry: Callable[[Message], Retry]


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A message that would be a dead letter.

    Attributes:
        queue: the queue that gave it up.
        message: the message.
        reason: the reason, such as `permanent`, `exhausted` or `saga_early`.
        error: the last error.
    """

    queue: str
    message: Message
    reason: str
    error: Exception


class NothingToAnswerError(AssertionError):
    """The command that a test answers was not sent."""


class SagaBench:
    """A saga in a test, with a virtual clock; use it in an `async with` block.

    Args:
        saga: the saga.
        participants: consumers whose handlers answer its commands, on the same fake data service. Commands to other
            queues wait for `answer`.
        resources: the resources of the data service besides the sagas themselves.
        unique: as for `FakeDataService`.
        providers: what handlers may ask for besides the data client, by type.
        seed: decides the order of what is due at the same time.
        start: the time at which the clock begins; None for now.
        data: a fake data service with the resource of sagas, in place of one with `resources` and `unique`.

    Attributes:
        commands: the commands that were sent, in commit order; timers are not among them.
        events: the events that were emitted, in commit order.
        dead_letters: the messages that were given up.
        data: the fake data service.
    """

    def __init__(
        self,
        saga: Saga[Any],
        *,
        participants: Sequence[RobustConsumer] = (),
        resources: Iterable[AnyResource] = (),
        unique: Mapping[AnyResource, Iterable[Any]] | None = None,
        providers: Mapping[Any, object] | None = None,
        seed: int = 0,
        start: datetime | None = None,
        data: FakeDataService | None = None,
    ) -> None:
        saga.check()
        self._saga = saga
        self._participants = {consumer.name: consumer for consumer in participants}
        self._providers = dict(providers or {})
        self._random = random.Random(seed)  # noqa: S311 - an order, no secret
        self._start = start
        self.data = data or FakeDataService([SAGAS, *resources], unique=unique)
        self.commands: list[Command] = []
        self.events: list[Event] = []
        self.dead_letters: list[GivenUp] = []
        self._answered: set[UUID] = set()
        self._due: list[Due] = []
        self._number = 0
        self._collected: set[UUID] = set()
        self._stack = AsyncExitStack()
        self._engine = SagaEngine(saga)
        self._clock = VirtualClock(start)
        self._client: PostgresDataClient | MongoDataClient | None = None

    def __repr__(self) -> str:
        return f"SagaBench({self._saga.name!r}, {len(self._due)} messages wait)"

    async def __aenter__(self) -> Self:
        self._stack.enter_context(self._clock)
        client = self._saga.client(BASE_URL, service="saga_bench", transport=self._transport())
        self._client = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _transport(self) -> Transport:
        return self.data.transport

    @property
    def client(self) -> PostgresDataClient | MongoDataClient:
        """The data client, with which a test looks at records."""
        assert self._client is not None, "enter the bench with `async with`"  # noqa: S101 # nosec B101
        return self._client

    @property
    def now(self) -> datetime:
        """The time of the clock."""
        return self._clock.moment

    # ── what a test does ─────────────────────────────────────────────────────────────────────────

    async def tell(self, message: Message) -> None:
        """Deliver an event or command, and everything that is due now because of it.

        Args:
            message: the message; the same object again is the same event, delivered twice.

        Raises:
            Exception: a handler has failed for good, with its own error.
        """
        envelope = EventEnvelope[Any].wrap(message, service="saga_bench")
        self._route(envelope, self.now)
        await self._run_due(self.now)

    async def skip(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Let time pass, and deliver what becomes due on the way, in the order of time.

        Args:
            days: of the time; the four are added up.
            hours: of the time.
            minutes: of the time.
            seconds: of the time.

        Raises:
            Exception: a handler has failed for good, with its own error.
        """
        until = self.now + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        await self._run_due(until)
        self._clock.advance(until - self.now)

    async def answer[CommandT: Command](
        self, command: type[CommandT], answer: Callable[[CommandT], Message]
    ) -> Message:
        """Answer the last command of a class that has no answer yet, as the participant would.

        Args:
            command: the class of the command.
            answer: returns the event for the command.

        Returns:
            The event.

        Raises:
            AssertionError: no such command waits for an answer; the message names what was sent.
        """
        for sent in reversed(self.sent(command)):
            if sent.event_id not in self._answered:
                self._answered.add(sent.event_id)
                event = answer(sent)
                await self.tell(event)
                return event
        raise NothingToAnswerError(f"no {command.__name__} waits for an answer; sent were {self.commands}")

    async def refuse(self, command: type[Command], *, reason: str = "permanent") -> None:
        """Let the last command of a class become a dead letter, of which its saga is told.

        Raises:
            AssertionError: no such command was sent.
        """
        sent = self.sent(command)
        if not sent:
            raise NothingToAnswerError(f"no {command.__name__} was sent; sent were {self.commands}")
        self._report_failure(sent[-1], reason)
        await self._run_due(self.now)

    async def order(self, key: object, do: Action, *, by: str = "test", note: str = "") -> None:
        """Give an order as a person does by the command line: `retry`, `cancel` or `skip`.

        Args:
            key: the saga's key.
            do: the order.
            by: the person.
            note: the reason.
        """
        await self.tell(order_class(self._saga.name)(saga_id=self._saga.id_of(key), do=do, by=by, note=note))

    def provided[T](self, type_: type[T]) -> T:
        """Return what was given to handlers as that type, for a test that looks at it."""
        return cast("T", self._values()[type_])

    def saga(self, key: object) -> SagaRecord:
        """Return the row of a key as it is now.

        Raises:
            AssertionError: there is none.
        """
        row = self.data.record(SAGAS, self._saga.id_of(key))
        if row is None:
            raise AssertionError(f"there is no saga {self._saga.name} with the key {key}")
        return row

    def sagas(self) -> list[SagaRecord]:
        """Return all rows of this saga as they are now."""
        return [row for row in self.data.records(SAGAS) if row.saga == self._saga.name]

    def sent[CommandT: Command](self, command: type[CommandT]) -> list[CommandT]:
        """Return the commands of one class that were sent, in commit order."""
        return [each for each in self.commands if isinstance(each, command)]

    def emitted[EventT: Event](self, event: type[EventT]) -> list[EventT]:
        """Return the events of one class that were emitted, in commit order."""
        return [each for each in self.events if isinstance(each, event)]

    # ── deliveries ───────────────────────────────────────────────────────────────────────────────

    async def _run_due(self, until: datetime) -> None:
        """Deliver what is due up to a time, and what follows from it up to then."""
        for _ in range(MAX_DELIVERIES):
            if not self._due or self._due[0].at > until:
                return
            due = heapq.heappop(self._due)
            if due.at > self.now:
                self._clock.advance(due.at - self.now)
            await self._deliver(due)
        raise AssertionError(f"{MAX_DELIVERIES} deliveries, and no end: messages cause each other in a loop")

    async def _deliver(self, due: Due) -> None:
        envelope = due.envelope
        claim = Claim(claim_key(due.target.name, envelope.service, str(envelope.event_id)))
        context = RequestContext(request_id=envelope.request_id, user_id=envelope.user_id, claim=claim)
        try:
            with bind(context):
                await due.target.run(envelope, due.attempt)
        except NotYetError as error:
            if due.waits == len(WAIT_SECONDS):
                self._give_up(due, error.reason, error)
            else:
                seconds = WAIT_SECONDS[due.waits]
                self._push(replace(due, at=self.now + timedelta(seconds=seconds), waits=due.waits + 1))
        except Exception as error:
            decision = due.target.retry(envelope.data).decide(
                error, attempt=due.attempt, jitter=self._random.random()
            )
            if isinstance(decision, GiveUp):
                self._give_up(due, decision.reason, error)
                if due.target.name == self._saga.name:
                    raise
            else:
                seconds = decision.seconds if isinstance(decision, RetryAfter) else 1.0
                attempt = due.attempt + isinstance(decision, RetryAfter)
                self._push(replace(due, at=self.now + timedelta(seconds=seconds), attempt=attempt))
        finally:
            self._collect()

    def _give_up(self, due: Due, reason: str, error: Exception) -> None:
        message = due.envelope.data
        self.dead_letters.append(GivenUp(due.target.name, message, reason, error))
        if due.envelope.reply_to is not None:
            self._report_failure(message, reason)

    def _report_failure(self, message: Message, reason: str) -> None:
        failed = CommandFailed(
            saga_id=self._saga.id_of(getattr(message, self._saga.key)),
            command_type=message.message_type,
            command_id=message.event_id,
            reason=reason,
        )
        self._push(self._due_to_saga(EventEnvelope[Any].wrap(failed, service="saga_bench"), self.now))

    def _collect(self) -> None:
        """Take what has been committed to the outbox since."""
        fresh = [each for each in self.data.emitted if each.event_id not in self._collected]
        self._collected |= {each.event_id for each in fresh}
        for emission in fresh:
            envelope = _envelope_of(emission)
            message = envelope.data
            if isinstance(message, Event):
                self.events.append(message)
            elif emission.queue != self._saga.name:
                self.commands.append(cast("Command", message))
            self._route(envelope, emission.not_before or self.now)

    def _route(self, envelope: EventEnvelope[Any], at: datetime) -> None:
        """Put a message into the queues that want it."""
        message = envelope.data
        own = {*self._saga.handlers.by_message, *self._saga.undone_by}
        to_saga = type(message) in own or (isinstance(message, Command) and message.queue == self._saga.name)
        if to_saga:
            self._push(self._due_to_saga(envelope, at))
        for consumer in self._participants.values():
            if type(message) in consumer.handles:
                self._push(self._due_for(self._target_of(consumer), envelope, at))

    def _due_to_saga(self, envelope: EventEnvelope[Any], at: datetime) -> Due:
        async def run(delivered: EventEnvelope[Any], attempt: int) -> None:
            await self._engine.deliver(delivered, self.client, self._values(), attempt=attempt)

        target = _Target(self._saga.name, run, lambda _: self._saga.retry)
        return self._due_for(target, envelope, at)

    def _target_of(self, consumer: RobustConsumer) -> _Target:
        handlers = {handler.message: handler for handler in consumer._handlers}  # noqa: SLF001 - as a consumer runs them

        async def run(envelope: EventEnvelope[Any], _attempt: int) -> None:
            await handlers[type(envelope.data)].run(envelope, self._values())

        return _Target(consumer.name, run, lambda message: handlers[type(message)].retry)

    def _values(self) -> dict[Any, object]:
        return {type(self.client): self.client, **self._providers}

    def _due_for(self, target: _Target, envelope: EventEnvelope[Any], at: datetime) -> Due:
        self._number += 1
        return Due(at, self._random.random(), self._number, target, envelope)

    def _push(self, due: Due) -> None:
        heapq.heappush(self._due, due)


def _envelope_of(emission: Emission) -> EventEnvelope[Any]:
    """Return the envelope that the relay would publish."""
    members = emission.model_dump(mode="json", exclude_none=True)
    wire = {
        name: members[name]
        for name in (
            "event_type",
            "event_id",
            "timestamp",
            "request_id",
            "user_id",
            "data",
            "version",
            "causation_id",
            "reply_to",
        )
        if name in members
    }
    return decode_envelope(encode_json({**wire, "service": "saga_bench"}))
