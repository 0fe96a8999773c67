"""The records in Redis: a question ends in time, with an answer or with `UnavailableError`."""

from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis

from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._redis._commands import CommandRefusedError, Script
from hybridkit.coordination._redis._resp import Part
from hybridkit.errors import UnavailableError
from hybridkit.observability import get_logger

if TYPE_CHECKING:
    import asyncio

_log = get_logger("hybridkit.idempotency")

COOLDOWN_SECONDS: Final = 1.0
"""The seconds after which to ask again while Redis does not answer."""


class Records:
    """The records and the scripts that change them, on the client's shared connection.

    Args:
        redis: a client from `connect_redis`.
        key_prefix: the prefix of every key.
    """

    def __init__(self, redis: Redis, *, key_prefix: str) -> None:
        self._redis = multiplexer_of(redis)
        self._key_prefix = key_prefix

    def __repr__(self) -> str:
        return f"Records(key_prefix={self._key_prefix!r}, redis={self._redis!r})"

    @property
    def are_away(self) -> bool:
        """Whether Redis can't be reached for so long that asking it costs no time and brings no answer."""
        return self._redis.is_away

    def start(
        self, script: Script, key: str, *arguments: Part, even_if_away: bool = False
    ) -> "asyncio.Future[Any]":
        """Run a script; the future gets its answer (bytes, or a list of bytes and numbers) or an error.

        A caller that is cancelled meanwhile does not stop the script.

        Args:
            script: one of the three.
            key: the claim's key.
            arguments: the script's.
            even_if_away: wait for the deadline also while Redis is away, rather than to fail at once.
        """
        return self._redis.run(script, (self._key_prefix + key,), *arguments, even_if_away=even_if_away)

    async def ask(self, script: Script, key: str, *arguments: Part) -> Any:
        """Run a script, and return its answer.

        Raises:
            UnavailableError: Redis did not answer, or refuses to run the script (out of memory).
        """
        try:
            return await self.start(script, key, *arguments)
        except UnavailableError as error:
            raise unavailable(error) from error


def unavailable(error: UnavailableError) -> UnavailableError:
    """Return the error of the guard for one of the connection, and log a refusal, which is no matter of time."""
    if isinstance(error, CommandRefusedError):
        _log.warning("Redis refuses a script of the idempotency guard", reason=str(error))
    return UnavailableError(
        f"the idempotency guard can't reach Redis: {error}", retry_after_seconds=COOLDOWN_SECONDS
    )
