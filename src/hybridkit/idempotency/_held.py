"""The block that runs while a claim is held: its lease is kept, and its context carries the claim."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType

from hybridkit.context import Claim, RequestContext, bind, current
from hybridkit.coordination._lease import LeaseKeeper


class Held(AbstractAsyncContextManager[None]):
    """The context manager of `IdempotencyGuard.hold`: a class, as generators would cost each event three times as much.

    Args:
        lease: keeps the lease.
        key: of the claim to bind; None where the block binds a context of its own.
    """

    __slots__ = ("_binding", "_key", "_lease")

    def __init__(self, lease: LeaseKeeper, key: str | None) -> None:
        self._lease = lease
        self._key = key
        self._binding: AbstractContextManager[RequestContext] | None = None

    async def __aenter__(self) -> None:
        await self._lease.__aenter__()
        if self._key is not None:
            self._binding = bound_to(self._key)
            self._binding.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._binding is not None:
            self._binding.__exit__(kind, error, trace)
        await self._lease.__aexit__(kind, error, trace)


def bound_to(key: str) -> AbstractContextManager[RequestContext]:
    """Bind the current context with the claim of this key."""
    context = current()
    return bind(context.claimed(Claim(key), deadline=context.deadline))
