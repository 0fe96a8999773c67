"""Prove a saga and its participants: every crash, every lost, repeated or refused message, and every cancellation.

```python
await prove_saga(place_order, scenario, participants=[stock, payments], resources=[PAYMENTS], holds=books_balance)
await prove_participant(Charge(order_id=order_id), Refund(order_id=order_id), by=payments, resources=[PAYMENTS])
```
"""

import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Self

from hybridkit.clients import MongoDataClient, PostgresDataClient, Request, Response, Transport
from hybridkit.clients._transports._base import StreamedResponse
from hybridkit.codec import encode_json
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.events import Command, EventEnvelope, Message
from hybridkit.ids import new_id
from hybridkit.messaging import RobustConsumer
from hybridkit.resources._resource import AnyResource
from hybridkit.sagas import SAGAS, Saga
from hybridkit.sagas._messages import SagaOrder, SagaTimer, order_class
from hybridkit.testing._data_service import BASE_URL, FakeDataService
from hybridkit.testing._saga_bench import Due, NothingToAnswerError, SagaBench

MAX_POINTS: Final = 500
"""The most crash points of one scenario that are tried."""
MAX_PROBLEMS: Final = 10
LONG: Final = timedelta(days=800)
"""The time after which a saga has ended, or will never end."""
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SYSTEM: Final = frozenset({"version", "created_at", "updated_at", "etag"})

type Scenario = Callable[[SagaBench], Awaitable[None]]
"""Drives a saga on a bench, from its start to an end."""


class _CrashError(BaseException):
    """The process dies here; no `except Exception` of a handler may stop it."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What goes wrong in one run of a scenario.

    Attributes:
        crash_at: the number of the request at which the process dies; 0 for none.
        after: whether it dies after the request was carried out, and before its answer arrives.
        overtaken: whether a person cancels before the message comes again.
        lost: the number of the message to the saga that never arrives.
        refused: the number of the command that becomes a dead letter.
        cancelled: the number of the message to the saga before which a person cancels.
        twice: whether each message arrives twice, `same` as the same message, `again` as one that was sent again.
    """

    crash_at: int = 0
    after: bool = False
    overtaken: bool = False
    lost: int = 0
    refused: int = 0
    cancelled: int = 0
    twice: str = ""

    def __str__(self) -> str:
        if self.crash_at:
            where = "after" if self.after else "before"
            then = ", and a cancellation comes before the rerun" if self.overtaken else ""
            return f"a crash {where} request {self.crash_at}{then}"
        if self.twice:
            return "each message twice" if self.twice == "same" else "each command sent again"
        for number, text in (
            (self.lost, "message {} to the saga is lost"),
            (self.refused, "command {} is refused"),
            (self.cancelled, "a cancellation before message {} to the saga"),
        ):
            if number:
                return text.format(number)
        return "nothing goes wrong"


class _CrashingTransport:
    """A transport that ends the process at a request."""

    def __init__(self, inner: Transport, disturbance: Disturbance) -> None:
        self._inner = inner
        self._disturbance = disturbance
        self.requests = 0

    def _check(self, *, after: bool) -> None:
        if self.requests == self._disturbance.crash_at and after == self._disturbance.after:
            raise _CrashError

    async def send(self, request: Request) -> Response:
        """Send a request, or die before or after it."""
        self.requests += 1
        self._check(after=False)
        response = await self._inner.send(request)
        self._check(after=True)
        return response

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[StreamedResponse]:
        """Stream a response; queries of a test, at which nothing dies."""
        async with self._inner.stream(request) as response:
            yield response

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()


class _ProofBench(SagaBench):
    """A bench on which something goes wrong."""

    def __init__(self, disturbance: Disturbance, data: FakeDataService, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, data=data)
        self.disturbance = disturbance
        self.crashing = _CrashingTransport(data.transport, disturbance)
        self.messages = 0
        self.orders = 0

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    def _transport(self) -> Transport:
        return self.crashing

    def _route(self, envelope: EventEnvelope[Any], at: Any) -> None:
        message = envelope.data
        if isinstance(message, Command) and message.queue != self._saga.name:
            self.orders += 1
            if self.orders == self.disturbance.refused:
                self._answered.add(message.event_id)
                self._report_failure(message, "permanent")
                return
            if self.disturbance.twice == "again":
                super()._route(envelope.model_copy(update={"event_id": new_id()}), at)
        super()._route(envelope, at)

    async def _deliver(self, due: Due) -> None:
        disturbance = self.disturbance
        is_first = due.attempt == 1 and due.waits == 0
        is_counted = not isinstance(due.envelope.data, SagaTimer | SagaOrder)
        if due.target.name == self._saga.name and is_first and is_counted:
            self.messages += 1
            if self.messages == disturbance.lost:
                return
            if self.messages == disturbance.cancelled:
                await self._cancel(due)
        try:
            await super()._deliver(due)
            if disturbance.twice == "same":
                await super()._deliver(due)
        except _CrashError:
            if disturbance.overtaken:
                await self._cancel(due)
                due = replace(due, at=self.now + timedelta(minutes=1))
            self._push(due)

    async def _cancel(self, due: Due) -> None:
        """Cancel the saga that a message is about, as a person does."""
        key = getattr(due.envelope.data, self._saga.key, None)
        if key is not None:
            order = order_class(self._saga.name)(
                saga_id=self._saga.id_of(key), do="cancel", by="proof", note=""
            )
            envelope = EventEnvelope[Any].wrap(order, service="saga_bench")
            await super()._deliver(self._due_to_saga(envelope, self.now))


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a run: what is compared with that of the run in which nothing went wrong."""

    statuses: tuple[str, ...]
    sent: Mapping[str, int]
    requests: int
    messages: int
    orders: int


async def prove_saga(
    saga: Saga[Any],
    scenario: Scenario,
    *,
    participants: Sequence[RobustConsumer] = (),
    resources: Iterable[AnyResource] = (),
    unique: Mapping[AnyResource, Iterable[Any]] | None = None,
    providers: Callable[[], Mapping[Any, object]] | None = None,
    holds: Scenario | None = None,
) -> int:
    """Run a scenario once for everything that can go wrong in it, and return the number of runs.

    The process dies before and after each request to the data service, and the message comes again, or a cancellation
    comes first; each message to the saga is lost, or preceded by a cancellation; each command is refused; every
    message comes twice, and every command is sent again. In each run all sagas have to end, or to tell an error, and
    `holds` has to hold. A crash or a repetition has to lead to the end, the commands and the events of the run in which
    nothing goes wrong.

    Args:
        saga: the saga.
        scenario: drives it on a bench; where something goes wrong, it may find nothing to answer.
        participants: as for `SagaBench`.
        resources: as for `SagaBench`.
        unique: as for `SagaBench`.
        providers: makes what handlers may ask for, anew for each run.
        holds: raises an `AssertionError` where effects are lost, doubled or left over: books that don't balance.

    Raises:
        AssertionError: problems were found; the message names up to ten, each with what went wrong.
    """
    data = FakeDataService([SAGAS, *resources], unique=unique)
    problems: list[str] = []
    runs = 0

    async def run(disturbance: Disturbance) -> _End | None:
        nonlocal runs
        runs += 1
        data.clear()
        bench = _ProofBench(
            disturbance, data, saga, participants=participants, providers=providers() if providers else None
        )
        try:
            return await _run(bench, scenario, holds)
        except AssertionError as error:
            problems.append(f"{disturbance}: {error}")
        except Exception as error:  # noqa: BLE001 - of the application's own handlers
            problems.append(f"{disturbance}: {type(error).__name__}: {error}")
        return None

    plain = await run(Disturbance())
    if plain is None:
        raise AssertionError(problems[0])
    for disturbance in _disturbances(plain):
        end = await run(disturbance)
        if end is None or disturbance.overtaken or not (disturbance.crash_at or disturbance.twice):
            continue
        if end.statuses != plain.statuses:
            problems.append(f"{disturbance}: ends as {end.statuses}, and otherwise as {plain.statuses}")
        elif disturbance.twice != "again" and end.sent != plain.sent:
            problems.append(f"{disturbance}: sends {_difference(end.sent, plain.sent)}")
    _raise(saga.name, problems, runs)
    return runs


async def _run(bench: _ProofBench, scenario: Scenario, holds: Scenario | None) -> _End:
    async with bench:
        try:
            await scenario(bench)
        except NothingToAnswerError:
            if bench.disturbance == Disturbance():
                raise
        await bench.skip(days=LONG.days)
        rows = bench.sagas()
        for row in rows:
            assert row.status.has_ended or row.error, (  # noqa: S101 # nosec B101 - the proof's own words
                f"the saga {row.key} never leaves {row.state or 'its start'!r} ({row.status})"
            )
        requests, messages, orders = bench.crashing.requests, bench.messages, bench.orders
        if holds is not None:
            await holds(bench)
        sent = _told((*bench.commands, *bench.events))
        return _End(tuple(sorted(row.status.value for row in rows)), sent, requests, messages, orders)


def _disturbances(plain: _End) -> Iterable[Disturbance]:
    for number in range(1, min(plain.requests, MAX_POINTS) + 1):
        for after in (False, True):
            yield Disturbance(crash_at=number, after=after)
            yield Disturbance(crash_at=number, after=after, overtaken=True)
    for number in range(1, plain.messages + 1):
        yield Disturbance(lost=number)
        yield Disturbance(cancelled=number)
    for number in range(1, plain.orders + 1):
        yield Disturbance(refused=number)
    yield Disturbance(twice="same")
    yield Disturbance(twice="again")


def _told(messages: Iterable[Message]) -> Mapping[str, int]:
    """Count equal messages; ids are numbered, as a scenario may make other ones in each run."""
    numbers: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return numbers.setdefault(found[0], f"id {len(numbers) + 1}")

    texts = (f"{each.message_type} {each.model_dump_json()}" for each in messages)
    return Counter(_UUID.sub(number, text) for text in texts)


def _difference(found: Mapping[str, int], wanted: Mapping[str, int]) -> str:
    names = [name for name in {**found, **wanted} if found.get(name, 0) != wanted.get(name, 0)]
    return "; ".join(f"{found.get(name, 0)} instead of {wanted.get(name, 0)} of {name}" for name in names)


def _raise(name: str, problems: Sequence[str], runs: int) -> None:
    if problems:
        lines = "\n  - ".join(problems[:MAX_PROBLEMS])
        raise AssertionError(f"{name}: {len(problems)} problems in {runs} runs:\n  - {lines}")


# ── participants ─────────────────────────────────────────────────────────────────────────────────

_ORDERS: Final = ("d", "dd", "u", "uu", "du", "ud", "duu", "dud", "udu", "dduu")


async def prove_participant(
    do: Command,
    undo: Command,
    *,
    by: RobustConsumer,
    resources: Iterable[AnyResource],
    unique: Mapping[AnyResource, Iterable[Any]] | None = None,
    providers: Callable[[], Mapping[Any, object]] | None = None,
    prepare: Callable[[PostgresDataClient], Awaitable[None]] | None = None,
) -> int:
    """Send a command and what undoes it in every order, with a crash at each request, and return the number of runs.

    Sent again, a command has to leave the records that it has left before, and each has to be answered by an event.
    Once it is undone, it has to stay undone: before, after and without the command, the records have to be the same.

    Args:
        do: the command.
        undo: the command that undoes it.
        by: the consumer that handles both.
        resources: the resources that it writes.
        unique: as for `FakeDataService`.
        providers: makes what its handlers may ask for, anew for each run.
        prepare: writes what has to be there before.

    Raises:
        AssertionError: problems were found; the message names up to ten.
    """
    wanted = list(resources)
    data = FakeDataService(wanted, unique=unique)
    problems: list[str] = []
    runs = 0

    async def end_of(order: str, crash: Disturbance) -> tuple[bytes, int]:
        nonlocal runs
        runs += 1
        data.clear()
        values = dict(providers()) if providers else {}
        transport = _CrashingTransport(data.transport, Disturbance())
        async with PostgresDataClient(BASE_URL, service="saga_bench", transport=transport) as client:
            if prepare is not None:
                await prepare(client)
            transport.requests, transport._disturbance = 0, crash  # noqa: SLF001 - one object of this module
            for step in order:
                answers = len(data.emitted)
                command = (do if step == "d" else undo).model_copy()
                await _send(by, command, {PostgresDataClient: client, MongoDataClient: client} | values)
                if len(data.emitted) == answers:
                    problems.append(f"{_named(order)}: {command.message_type} is not answered by an event")
            requests = transport.requests
            transport._disturbance = Disturbance()  # noqa: SLF001 - as above
            return await _records(client, wanted), requests

    ends: dict[str, bytes] = {}
    for order in _ORDERS:
        ends[order], requests = await end_of(order, Disturbance())
        for number in range(1, requests + 1):
            for after in (False, True):
                crash = Disturbance(crash_at=number, after=after)
                found, _ = await end_of(order, crash)
                if found != ends[order]:
                    problems.append(f"{_named(order)}, {crash}: leaves {found!r} instead of {ends[order]!r}")
        expected = "d" if "u" not in order else "u"
        if ends[order] != ends.get(expected, ends[order]):
            problems.append(
                f"{_named(order)} leaves {ends[order]!r}, and {_named(expected)} leaves {ends[expected]!r}"
            )
    _raise(by.name, problems, runs)
    return runs


async def _send(consumer: RobustConsumer, command: Command, values: Mapping[Any, object]) -> None:
    """Have a consumer handle a command, again after a crash."""
    envelope = EventEnvelope[Any].wrap(command, service="saga_bench")
    handler = next(each for each in consumer._handlers if each.message is type(command))  # noqa: SLF001
    while True:
        claim = Claim(f"{consumer.name}:saga_bench:{envelope.event_id}")
        try:
            with bind(RequestContext(claim=claim)):
                await handler.run(envelope, values)
        except _CrashError:
            continue
        return


async def _records(client: PostgresDataClient, resources: Iterable[AnyResource]) -> bytes:
    """Return all records without what each write changes."""
    found: list[Any] = []
    for resource in resources:
        found += [
            [resource.name, record.model_dump(mode="json", exclude=set(SYSTEM))]
            async for record in client.find(resource)
        ]
    return encode_json(sorted(found, key=encode_json))


def _named(order: str) -> str:
    return " then ".join("do" if step == "d" else "undo" for step in order)
