"""The calls that a service declares itself as `Call`, each answered by a handler inside one transaction.

```python
DEACTIVATE = Call("deactivate", resource=USERS, request=Deactivate, response=Deactivated)

async def deactivate(body: Deactivate, work: CallContext[AsyncConnection]) -> Deactivated:
    result = await work.database.execute(update(UserTable).where(...).values(is_active=False))
    work.emit(UsersDeactivated(before=body.before))
    return Deactivated(users=result.rowcount)

app = create_data_service(PostgresSettings, {USERS: UserTable}, calls={DEACTIVATE: deactivate})
```

A FastAPI route of the application reads through `Database`, within the request's deadline and the pool's limits.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, cast, get_type_hints

from fastapi import Depends, Request
from pydantic import BaseModel

from hybridkit.codec import encode_json
from hybridkit.context import current
from hybridkit.contract import Emission
from hybridkit.dataservice._store._operations import CallAnswer
from hybridkit.dataservice._store._protocol import Store
from hybridkit.errors import DeclarationError, NotSupportedError
from hybridkit.events import Message
from hybridkit.observability import trace_headers
from hybridkit.resources._resource import AnyCall

type CallHandler = Callable[[Any, CallContext[Any]], Awaitable[BaseModel]]
"""Returns the response, given the request's body and the context."""


class CallContext[DatabaseT]:
    """The context of one run of a handler. A call that lost a race runs again, with another context.

    Attributes:
        database: SQLAlchemy's `AsyncConnection` in the call's transaction, or PyMongo's `AsyncDatabase`.
        caller: the name of the calling service.
    """

    def __init__(self, database: DatabaseT, *, caller: str, can_emit: bool) -> None:
        self.database = database
        self.caller = caller
        self._can_emit = can_emit
        self._emissions: list[Emission] = []

    def __repr__(self) -> str:
        return f"CallContext(caller={self.caller!r}, emissions={len(self._emissions)})"

    def emit(self, message: Message, *, not_before: datetime | None = None) -> None:
        """Publish an event or command, if the call is committed.

        Args:
            message: the event or command.
            not_before: when it may be published; None for at once.

        Raises:
            NotSupportedError: the service has no broker, or the call is declared as safe.
        """
        if not self._can_emit:
            raise NotSupportedError(
                "nothing would publish that: a safe call doesn't emit, nor one without a broker"
            )
        context = current()
        self._emissions.append(
            Emission.of(
                message,
                request_id=context.request_id,
                user_id=context.user_id,
                not_before=not_before,
                trace=trace_headers(),
            )
        )

    @property
    def emissions(self) -> tuple[Emission, ...]:
        """The events and commands that were emitted so far."""
        return tuple(self._emissions)


async def run_call(
    call: AnyCall, handler: CallHandler, body: BaseModel, work: CallContext[Any]
) -> CallAnswer:
    """Run the handler on a request's body, and return its response and what it has emitted.

    Raises:
        DeclarationError: the handler returned something else than the call's response.
    """
    response = await handler(body, work)
    if not isinstance(response, call.response):
        raise DeclarationError(
            f"the handler of {call.path} returned {type(response).__name__}, not {call.response.__name__}"
        )
    return CallAnswer(encode_json(response), work.emissions)


def check_calls(calls: Mapping[AnyCall, CallHandler], resources: Mapping[str, Any]) -> None:
    """Refuse calls that would fail only when they are made.

    Raises:
        DeclarationError: a call belongs to a resource that isn't served, two calls have one name, or a handler takes
            or returns something else than its call declares.
    """
    paths: set[str] = set()
    for call, handler in calls.items():
        if call.resource.name not in resources:
            raise DeclarationError(f"{call.path}: this service doesn't have {call.resource.name}")
        if call.path in paths:
            raise DeclarationError(f"two calls are {call.path}")
        paths.add(call.path)
        _check_handler(call, handler)


def _check_handler(call: AnyCall, handler: CallHandler) -> None:
    name = getattr(handler, "__qualname__", repr(handler))
    if not inspect.iscoroutinefunction(inspect.unwrap(handler)):
        raise DeclarationError(f"{call.path}: {name} is no async function")
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        raise DeclarationError(f"{call.path}: {name} takes the request and its CallContext") from None
    try:
        hints = get_type_hints(handler)
    except (NameError, TypeError):  # annotations of a module that imports them for type checkers only
        return
    parameter = next(iter(inspect.signature(handler).parameters))
    for what, annotation, declared in (
        ("takes", hints.get(parameter), call.request),
        ("returns", hints.get("return"), call.response),
    ):
        if isinstance(annotation, type) and annotation is not declared:
            raise DeclarationError(
                f"{call.path}: {name} {what} {annotation.__name__}, and {declared.__name__} is declared"
            )


class DatabaseReader:
    """The data service's database for FastAPI routes of the application, which only read: writes are `Call`s.

    Args:
        store: the store of the running application.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __repr__(self) -> str:
        return f"DatabaseReader({self._store!r})"

    async def read[T](self, query: Callable[[Any], Awaitable[T]]) -> T:
        """Return the query's result, within the request's deadline and on one connection of the pool.

        Args:
            query: a function that is given SQLAlchemy's `AsyncConnection`, or PyMongo's `AsyncDatabase`.

        Raises:
            OverloadedError: no connection of the pool became free.
            UnavailableError: the database does not answer.
            DeadlinePassedError: the request's deadline passed first.
        """
        found: list[T] = []

        async def work(database: Any) -> CallAnswer:
            found[:] = [await query(database)]
            return CallAnswer(b"")

        await self._store.ask(work)
        return found[0]


def _reader(request: Request) -> DatabaseReader:
    return DatabaseReader(cast("Store", request.app.state.store))


Database = Annotated[DatabaseReader, Depends(_reader)]
"""The annotation by which a FastAPI route of the application asks for a `DatabaseReader`."""
