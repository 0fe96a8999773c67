"""How patient a client is, as one frozen value."""

from dataclasses import dataclass
from typing import Final

from hybridkit.errors import DeclarationError
from hybridkit.retry import Retry

__all__ = ["ClientPolicy"]

MIB: Final = 1024 * 1024
RETRY: Final = Retry.exponential(first_seconds=0.05, cap_seconds=1.0, attempts=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """Limits of one client; the defaults suit calls that somebody waits for.

    Attributes:
        read_timeout_seconds: for a whole read: queue, attempts and the pauses between them. One attempt takes at most
            two thirds of it, so that a replica that hangs leaves time for another.
        write_timeout_seconds: the same for a write. The context's deadline shortens both, nothing lengthens them.
        connect_timeout_seconds: for one connection, TLS included.
        retry: how often and how far apart; full jitter up to 50 ms, then 100 ms.
        max_in_flight: requests on the wire at a time.
        max_queued: calls that may wait for one of these places; a further one is refused.
        max_response_bytes: the longest body of an answer.
    """

    read_timeout_seconds: float = 3.0
    write_timeout_seconds: float = 5.0
    connect_timeout_seconds: float = 0.3
    retry: Retry = RETRY
    max_in_flight: int = 64
    max_queued: int = 128
    max_response_bytes: int = 16 * MIB

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through.

        Raises:
            DeclarationError: naming the limit.
        """
        for name in (
            "read_timeout_seconds",
            "write_timeout_seconds",
            "connect_timeout_seconds",
            "max_in_flight",
            "max_response_bytes",
        ):
            if getattr(self, name) <= 0:
                raise DeclarationError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.max_queued < 0:
            raise DeclarationError(f"max_queued must not be below 0, but is {self.max_queued}")
