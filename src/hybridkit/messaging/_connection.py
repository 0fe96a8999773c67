"""One connection to the broker that is opened again whenever it is lost."""

from types import TracebackType
from typing import Self

__all__ = ["BrokerConnection"]


class BrokerConnection:
    """A connection that consumers share; publishers have their own, because a broker alarm blocks those that publish.

    Args:
        url: `amqp://user:password@host:port/vhost`, or `amqps://`.
        name: shown in the management interface, normally the service's name.
    """

    def __init__(self, url: str, *, name: str) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        """Connect, trying again with growing pauses until the context's deadline, or for 30 s without one.

        Raises:
            NotConnectedError: the broker did not answer in that time.
            AccessDeniedError: it refuses the user, the password or the virtual host.
        """
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; bounded, whatever the broker does."""
        raise NotImplementedError

    @property
    def is_ready(self) -> bool:
        """Whether it is open now."""
        raise NotImplementedError
