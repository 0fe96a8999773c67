"""The consumer of a saga: its queue, with a delivery for each message, and the sweep for lost timers beside it."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from hybridkit.events import EventEnvelope, Message
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.messaging._consuming._execution import attempt_number
from hybridkit.messaging._consuming._guarded_runner import Guard
from hybridkit.sagas._commits import DataClient  # noqa: TC001 - an annotation at run time
from hybridkit.sagas._declaration import SagaDeclaration
from hybridkit.sagas._engine import SagaEngine
from hybridkit.sagas._messages import CommandFailed, order_class, timer_class
from hybridkit.sagas._sweep import Sweep

RESERVED_SECONDS: Final = 10.0
"""The time after a handler's own in which its error is written to the row."""
_ABSENT: Final = object()


class SagaConsumer(RobustConsumer):
    """The queue of a saga, which `run_worker` runs as any consumer; made by `Saga.consumer`.

    Args:
        saga: the declaration.
    """

    def __init__(self, saga: SagaDeclaration[Any]) -> None:
        super().__init__(
            saga.name,
            concurrency=saga.concurrency,
            timeout_seconds=saga.timeout_seconds + RESERVED_SECONDS,
        )
        saga.check()
        self.saga = saga
        self._engine = SagaEngine(saga)
        self._sweeping: asyncio.Task[None] | None = None
        for message in messages_of(saga):
            self.on(message, retry=saga.retry)(self._deliver_to(message))

    async def start(
        self,
        connection: BrokerConnection,
        *,
        publisher: RobustPublisher,
        providers: Mapping[Any, object] | None = None,
        guard: Guard | None = None,
        priority: int = 0,
    ) -> None:
        """Subscribe as any consumer does, and look for lost timers every minute until `drain`."""
        await super().start(
            connection, publisher=publisher, providers=providers, guard=guard, priority=priority
        )
        client: Any = (providers or {})[self.saga.client]
        sweep = Sweep(self.saga, client, publisher)
        self._sweeping = asyncio.create_task(sweep.run(), name=f"{self.name} sweep")

    async def drain(self, *, budget_seconds: float) -> bool:
        """Stop the sweep, and drain as any consumer does."""
        sweeping, self._sweeping = self._sweeping, None
        if sweeping is not None:
            sweeping.cancel()
            await asyncio.wait({sweeping})
        return await super().drain(budget_seconds=budget_seconds)

    def _deliver_to(self, message: type[Message]) -> Callable[..., Awaitable[None]]:
        """Return the consumer's handler of a message, which asks for all that the saga's handlers may want."""
        client_type, engine = self.saga.client, self._engine
        wanted = wanted_of(self.saga)

        async def deliver(**arguments: Any) -> None:
            envelope: EventEnvelope[Any] = arguments["envelope"]
            client: DataClient = arguments["client"]
            values = {
                type_: arguments[f"value_{number}"]
                for number, type_ in enumerate(wanted)
                if arguments.get(f"value_{number}", _ABSENT) is not _ABSENT
            }
            await engine.deliver(envelope, client, values, attempt=attempt_number.get())

        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("envelope", kind, annotation=EventEnvelope[Any]),
            inspect.Parameter("client", kind, annotation=client_type),
            *(
                inspect.Parameter(
                    f"value_{number}",
                    kind,
                    annotation=type_,
                    default=_ABSENT if is_optional else inspect.Parameter.empty,
                )
                for number, (type_, is_optional) in enumerate(wanted.items())
            ),
        ]
        deliver.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # read by `plan_injection`
        deliver.__qualname__ = f"{self.name}: {message.__name__}"
        return deliver


def messages_of(saga: SagaDeclaration[Any]) -> list[type[Message]]:
    """Return all messages that a saga's queue gets."""
    declared = [*saga.handlers.by_message, *saga.undone_by]
    own: list[type[Message]] = [timer_class(saga.name), order_class(saga.name), CommandFailed]
    return list(dict.fromkeys([*declared, *own]))


def wanted_of(saga: SagaDeclaration[Any]) -> dict[Any, bool]:
    """Return the types that a saga's handlers want from the process, each with whether all of them can do without."""
    wanted: dict[Any, bool] = {}
    for handler in saga.handlers:
        for want in handler.provided():
            wanted[want.type] = wanted.get(want.type, True) and want.optional
    return wanted
