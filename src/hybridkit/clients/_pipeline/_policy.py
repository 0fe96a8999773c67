"""The limits of a client, as one frozen value."""

from dataclasses import dataclass
from typing import Final, Self

from hybridkit.errors import DeclarationError
from hybridkit.retry import Retry

MIB: Final = 1024 * 1024
RETRY: Final = Retry.exponential(first_seconds=0.05, cap_seconds=1.0, attempts=3)
WORKER_RETRY: Final = Retry.exponential(first_seconds=0.1, cap_seconds=2.0, attempts=4)
BULK_RETRY: Final = Retry.exponential(first_seconds=0.2, cap_seconds=5.0, attempts=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """The limits of one client; the defaults suit calls that a person waits for.

    | | `interactive()`, the default | `worker()` | `bulk()` |
    |---|---|---|---|
    | for | requests that a person waits for | events, jobs | imports, exports, reports |
    | a read, a write | 3 s, 5 s | 10 s, 15 s | 60 s, 60 s |
    | a connection | 0.3 s | 1 s | 1 s |
    | attempts, pauses up to | 3, 1 s | 4, 2 s | 5, 5 s |
    | on the wire, waiting | 64, 128 | 32, 512 | 4, 64 |
    | an answer | 16 MiB | 16 MiB | 64 MiB |

    Make others from these: `dataclasses.replace(ClientPolicy.worker(), max_in_flight=8)`.

    Attributes:
        read_timeout_seconds: the time of a whole read: queue, attempts and the pauses between them. One attempt has
            two thirds of it, so that a replica that hangs leaves time for another.
        write_timeout_seconds: the same for a write. The context's deadline shortens both, nothing lengthens them.
        connect_timeout_seconds: the time for one connection, TLS included.
        retry: the number of attempts and the pauses between them; by default with full jitter up to 50 ms, then 100 ms.
        max_in_flight: the most requests on the wire at a time.
        max_queued: the most calls that wait for one of these to end; a further one is refused.
        max_response_bytes: the most bytes that the body of an answer may have.
    """

    read_timeout_seconds: float = 3.0
    write_timeout_seconds: float = 5.0
    connect_timeout_seconds: float = 0.3
    retry: Retry = RETRY
    max_in_flight: int = 64
    max_queued: int = 128
    max_response_bytes: int = 16 * MIB

    @classmethod
    def interactive(cls) -> Self:
        """Return the policy for requests that a person waits for: an error now is better than an answer too late."""
        return cls()

    @classmethod
    def worker(cls) -> Self:
        """Return the more patient policy for events and jobs: no person waits, and what fails is repeated later."""
        return cls(
            read_timeout_seconds=10.0,
            write_timeout_seconds=15.0,
            connect_timeout_seconds=1.0,
            retry=WORKER_RETRY,
            max_in_flight=32,
            max_queued=512,
        )

    @classmethod
    def bulk(cls) -> Self:
        """Return the policy for imports, exports and reports: large, slow calls, a few at a time."""
        return cls(
            read_timeout_seconds=60.0,
            write_timeout_seconds=60.0,
            connect_timeout_seconds=1.0,
            retry=BULK_RETRY,
            max_in_flight=4,
            max_queued=64,
            max_response_bytes=64 * MIB,
        )

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through.

        Raises:
            DeclarationError: a limit is too low; the message names it.
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
