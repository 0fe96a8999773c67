"""The declaration of a saga: its states, its handlers, and the consumer that runs them."""

import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, TypeAdapter

from hybridkit._personal import personal_fields
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.errors import DeclarationError, MalformedPayloadError, UnavailableError
from hybridkit.events import Command, Event, Message
from hybridkit.ids import derived_id
from hybridkit.retry import Retry
from hybridkit.sagas._handlers import Missing, SagaHandler, SagaHandlers, plan_handler
from hybridkit.sagas._records import NewSaga
from hybridkit.sagas._run import MAX_TIMEOUT

type DataUpcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""A function that turns the data of one version into that of the next."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
MAX_NAME_LENGTH: Final = 100


class SagaDeclaration[DataT: BaseModel]:
    """A workflow over services: states that say what is waited for, and a handler for each message in them.

    Args:
        name: the name of its queue, in snake_case with dots: `worker_service.place_order`.
        data: the model of what an instance remembers; `Personal` marks what is erased with a person.
        states: the states, each named for what is waited for.
        key: the field that all its events have, whose value tells the instances apart. A value is used once: a new run
            needs a new one.
        deadline: how long the whole may take before it fails; None for no limit besides those of the waits.
        version: the version of `data`, raised when its shape changes; see `upcast`.
        undone_by: the events that confirm an undo. The queue gets them, and `saga.send(..., undone_by=...)` names one.
        keep: how long the rows of those that have ended are kept, at least an hour; one with an error stays.
        client: the data service with the rows, and with the resources that its handlers write to by `saga.tx`.
        concurrency: the number of messages that a process works on at the same time.
        timeout_seconds: the time that one message may take.
        retry: the policy for failures of handlers; by default 8 attempts, and a pause while a service is down.

    Raises:
        DeclarationError: an argument is out of its range, or the declaration contradicts itself.
    """

    def __init__(
        self,
        name: str,
        *,
        data: type[DataT],
        states: type[StrEnum],
        key: str,
        deadline: timedelta | None = None,
        version: int = 1,
        undone_by: Iterable[type[Event]] = (),
        keep: timedelta = timedelta(days=30),
        client: type[PostgresDataClient] | type[MongoDataClient] = PostgresDataClient,
        concurrency: int = 16,
        timeout_seconds: float = 60.0,
        retry: Retry | None = None,
    ) -> None:
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
            raise DeclarationError(
                f"a saga's name is snake_case with dots, at most {MAX_NAME_LENGTH} characters, not {name!r}"
            )
        if deadline is not None and not timedelta(0) < deadline <= MAX_TIMEOUT:
            raise DeclarationError(
                f"{name}: the deadline is more than 0 and at most 366 days, not {deadline}"
            )
        if keep < timedelta(hours=1):
            raise DeclarationError(
                f"{name}: ended rows are kept for an hour at least, not {keep}: messages come late"
            )
        if version < 1:
            raise DeclarationError(f"{name}: version is at least 1, not {version}")
        if not list(states):
            raise DeclarationError(f"{name}: {states.__name__} has no states")
        personal_fields(data)
        self.name = name
        self.data = data
        self.states = states
        self.key = key
        self.deadline = deadline
        self.version = version
        self.keep = keep
        self.client = client
        self.concurrency = concurrency
        self.timeout_seconds = timeout_seconds
        self.retry = retry or Retry.exponential().pause_on(UnavailableError)
        self.undone_by = tuple(undone_by)
        for event in self.undone_by:
            self._check_message(event)
        self.handlers = SagaHandlers()
        self._upcasters: dict[int, DataUpcaster] = {}

    def __repr__(self) -> str:
        return f"Saga({self.name!r}, states={[state.value for state in self.states]}, version={self.version})"

    # ── declaring ────────────────────────────────────────────────────────────────────────────────

    def starts[HandlerT: Callable[..., Awaitable[object]]](
        self, message: type[Message]
    ) -> Callable[[HandlerT], HandlerT]:
        """Register, as a decorator, the handler of the message that begins an instance.

        Args:
            message: the event or command. One that comes again for the same key is counted as late.

        Raises:
            DeclarationError: the message has no key field, or begins this saga already.
        """

        def register(function: HandlerT) -> HandlerT:
            plan = plan_handler(function, message, where=self.name)
            if (other := self.handlers.start_of(message)) is not None:
                raise DeclarationError(
                    f"{self.name}: {message.__name__} starts it in {other.plan.owner} already"
                )
            self._add(SagaHandler(message=message, function=function, plan=plan, is_start=True))
            return function

        return register

    def on[HandlerT: Callable[..., Awaitable[object]]](
        self,
        message: type[Message],
        *,
        when: StrEnum | Iterable[StrEnum] | None = None,
        missing: Missing = Missing.WAIT,
        otherwise: Missing | None = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Register, as a decorator, the handler of a message in some states.

        Parameters are injected by their annotation: `Run[...]`, the message's class, and what the process provides.

        Args:
            message: the event or command.
            when: the state or states; None for all.
            missing: what becomes of it where there is no instance with its key. An event that others cause too is
                ignored; any other may have overtaken the start, and waits.
            otherwise: what becomes of it in other states. By default it waits where no state of `when` has been
                visited, as it is early; otherwise it is late, and is counted. Say it for states that are visited again.

        Raises:
            DeclarationError: the message has no key field, or another handler has it in one of these states.
        """

        def register(function: HandlerT) -> HandlerT:
            plan = plan_handler(function, message, where=self.name)
            handler = SagaHandler(
                message=message,
                function=function,
                plan=plan,
                when=self._states_of(when),
                missing=missing,
                otherwise=otherwise,
            )
            self._check_once(handler)
            self._add(handler)
            return function

        return register

    def on_timeout[HandlerT: Callable[..., Awaitable[object]]](
        self, *states: StrEnum
    ) -> Callable[[HandlerT], HandlerT]:
        """Register, as a decorator, the handler of the end of a wait; without one the saga fails.

        Args:
            states: the states.

        Raises:
            DeclarationError: a state is none of this saga's, or has such a handler.
        """

        def register(function: HandlerT) -> HandlerT:
            plan = plan_handler(function, None, where=self.name)
            for state in self._states_of(states) or ():
                if state in self.handlers.timeouts:
                    raise DeclarationError(f"{self.name}: {state!r} has a handler for its timeout already")
                self.handlers.timeouts[state] = SagaHandler(message=None, function=function, plan=plan)
            return function

        return register

    def on_failed[HandlerT: Callable[..., Awaitable[object]]](
        self, *commands: type[Command]
    ) -> Callable[[HandlerT], HandlerT]:
        """Register, as a decorator, the handler of commands that have become dead letters; without one the saga fails.

        Args:
            commands: the classes of the commands.

        Raises:
            DeclarationError: a command has such a handler.
        """

        def register(function: HandlerT) -> HandlerT:
            plan = plan_handler(function, None, where=self.name)
            for command in commands:
                if command.message_type in self.handlers.failures:
                    raise DeclarationError(
                        f"{self.name}: {command.__name__} has a handler for its failure already"
                    )
                self.handlers.failures[command.message_type] = SagaHandler(
                    message=None, function=function, plan=plan
                )
            return function

        return register

    def on_end[HandlerT: Callable[..., Awaitable[object]]](self, function: HandlerT) -> HandlerT:
        """Register, as a decorator, the handler of the last transaction, after `done` and after undoing.

        Raises:
            DeclarationError: there is one already.
        """
        if self.handlers.end is not None:
            raise DeclarationError(f"{self.name}: {self.handlers.end.plan.owner} is its `on_end` already")
        plan = plan_handler(function, None, where=self.name)
        self.handlers.end = SagaHandler(message=None, function=function, plan=plan)
        return function

    def upcast(self, *, from_version: int) -> Callable[[DataUpcaster], DataUpcaster]:
        """Register, as a decorator, how the data of a version becomes that of the next.

        Args:
            from_version: the version that the function reads.

        Raises:
            DeclarationError: the version is not below this declaration's, or has an upcaster already.
        """
        if not 1 <= from_version < self.version or from_version in self._upcasters:
            raise DeclarationError(
                f"{self.name} is version {self.version}; an upcaster from {from_version} has no use,"
                " or is there already"
            )

        def register(upcaster: DataUpcaster) -> DataUpcaster:
            self._upcasters[from_version] = upcaster
            return upcaster

        return register

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def id_of(self, key: object) -> UUID:
        """Return the id of the row of a key.

        Args:
            key: the value of the key field, or its text.
        """
        return derived_id(f"saga:{self.name}", str(key))

    def key_of(self, message: Message) -> str:
        """Return the key of a message as text."""
        return str(getattr(message, self.key))

    def read_key(self, text: str) -> Any:
        """Return a key in the type of the field of the first message that begins this saga."""
        start = next((each.message for each in self.handlers if each.is_start and each.message), None)
        if start is None:
            return text
        adapter: TypeAdapter[Any] = TypeAdapter(start.model_fields[self.key].annotation)
        return adapter.validate_strings(text)

    def with_new_data(self, row: NewSaga) -> NewSaga:
        """Return the row with its data in the shape of this version.

        Raises:
            MalformedPayloadError: an upcaster has failed.
        """
        data = dict(row.data)
        for version in range(row.definition, self.version):
            upcaster = self._upcasters.get(version)
            if upcaster is None:
                continue  # a version without an upcaster has only added what has a default
            try:
                data = upcaster(data)
            except Exception as error:  # it meets data that its author did not expect
                raise MalformedPayloadError(
                    f"{self.name}: the upcaster from version {version} failed: {type(error).__name__}"
                ) from error
        return row.model_copy(update={"data": data})

    def check(self) -> None:
        """Check what is known only when all handlers are registered.

        Raises:
            DeclarationError: nothing starts the saga, or no handler names a state.
        """
        if not any(handler.is_start for handler in self.handlers):
            raise DeclarationError(f"{self.name} has no start; register one with `@saga.starts(...)`")
        named = set(self.handlers.timeouts)
        for handler in self.handlers:
            if handler.message is not None and not handler.is_start:
                named |= (
                    set(handler.when) if handler.when is not None else {str(s.value) for s in self.states}
                )
        unnamed = sorted({str(state.value) for state in self.states} - named)
        if unnamed:
            raise DeclarationError(
                f"{self.name}: no handler names {', '.join(map(repr, unnamed))}; who waits there waits in vain"
            )

    # ── checking ─────────────────────────────────────────────────────────────────────────────────

    def _add(self, handler: SagaHandler) -> None:
        assert handler.message is not None  # noqa: S101 # nosec B101 - the callers' handlers have one
        self._check_message(handler.message)
        self.handlers.by_message.setdefault(handler.message, []).append(handler)

    def _check_message(self, message: type[Message]) -> None:
        if not message.message_type:
            raise DeclarationError(
                f"{self.name}: {message.__name__} is a base class without a type on the wire"
            )
        if self.key not in message.model_fields:
            raise DeclarationError(
                f"{self.name}: {message.__name__} has no field {self.key!r}, the key of this saga"
            )

    def _check_once(self, handler: SagaHandler) -> None:
        for other in self.handlers.waiting(handler.message or Message):
            if handler.when is None or other.when is None or handler.when & other.when:
                name = (handler.message or Message).__name__
                raise DeclarationError(
                    f"{self.name}: {handler.plan.owner} and {other.plan.owner} both handle {name} in one state"
                )

    def _states_of(self, when: StrEnum | Iterable[StrEnum] | None) -> frozenset[str] | None:
        if when is None:
            return None
        states = (when,) if isinstance(when, StrEnum) else tuple(when)
        for state in states:
            if not isinstance(state, self.states):
                raise DeclarationError(f"{self.name}: {state!r} is no {self.states.__name__}")
        return frozenset(str(state.value) for state in states)
