"""The values of one cache in Redis: read, judged, stored and dropped."""

import random
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Final

from redis.asyncio import Redis

from hybridkit.coordination._cache._entries import Entries, forget
from hybridkit.coordination._cache._keys import CacheId, key_part
from hybridkit.coordination._cache._owed import OwedInvalidations
from hybridkit.coordination._cache._scripts import DROP, READ, RELEASE, RENEW, STORE
from hybridkit.coordination._cache._tags import Tags
from hybridkit.coordination._cache._values import UnreadableValueError, Values, read_tags, write_tags
from hybridkit.observability import metrics

CLAIM_SECONDS: Final = 2.0
"""The time after which another process takes over from a loader that died; a living one renews its claim."""
PAUSE_SECONDS: Final = 1.0
"""The time after a refresh that failed in which no other is begun."""
SPREAD: Final = 0.1
"""The part of a lifetime by which values that were stored together end apart."""

_CLAIM_MS: Final = round(CLAIM_SECONDS * 1000)
_PAUSE_MS: Final = round(PAUSE_SECONDS * 1000)
_MARGIN_MS: Final = 60_000


class Found[T]:
    """The usable content of a reply.

    Attributes:
        how: `HIT`, or of a value that is stale or missing `GRANTED`, `TAKEN_OVER` or `HELD`, as `READ` tells.
        body: the stored value; None where there is none.
        value: the value, if there is a body; None stands for "there is none" then.
        holder: the token of the claim.
    """

    __slots__ = ("body", "holder", "how", "value")

    def __init__(self, how: bytes, body: bytes | None, value: T | None, holder: str) -> None:
        self.how = how
        self.body = body
        self.value = value
        self.holder = holder

    @property
    def is_granted(self) -> bool:
        """Whether the caller has to load."""
        return self.how in (b"GRANTED", b"TAKEN_OVER")


class StoredValues[T]:
    """The values of one cache.

    Args:
        name: the cache's name.
        type_: the type of the values.
        redis: returns the client.
        ttl_ms: the time for which a value is fresh, in milliseconds.
        stale_ms: the time after that for which it is kept.
        none_ms: the time for which it is kept that there is none.
        load_ms: the longest time of a load.
        max_bytes: the largest value that is stored.
        tags: returns the tags of a value; None for a cache without tags.
        timeout_seconds: the time that a reply may take.
    """

    def __init__(
        self,
        name: str,
        type_: type[T],
        redis: Callable[[], Redis],
        *,
        ttl_ms: int,
        stale_ms: int,
        none_ms: int,
        load_ms: int,
        max_bytes: int,
        tags: Callable[[T], Collection[str]] | None,
        timeout_seconds: float,
    ) -> None:
        self.name = name
        self.values = Values(name, type_, tags)
        self.entries = Entries(redis, name=name, timeout_seconds=timeout_seconds)
        self.owed = OwedInvalidations(name)
        self._prefix = f"hk:cache:{name}:"
        self._ttl_ms, self._stale_ms, self._none_ms = ttl_ms, stale_ms, none_ms
        self._max_bytes = max_bytes
        longest_ms = max(ttl_ms + stale_ms, none_ms) + load_ms + _MARGIN_MS
        self._tags = tags and Tags(self.entries, prefix=f"hk:cache_tags:{name}:", kept_ms=longest_ms)
        self.count = {
            outcome: metrics.cache_outcomes.labels(name, outcome).inc
            for outcome in ("hit", "stale", "miss", "fallback", "wait", "takeover", "oversized")
        }

    def __repr__(self) -> str:
        return f"StoredValues({self.name!r})"

    def key(self, id: CacheId) -> str:
        """Return the key of an id."""
        return self._prefix + key_part(id)

    # ── reads ────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, key: str, token: str) -> Any:
        """Return the reply of Redis to a read, which claims the load of a value that is stale or missing.

        Raises:
            UnavailableError: Redis did not reply.
        """
        return await self.entries.run(READ, key, token, _CLAIM_MS)

    async def examine(self, key: str, reply: Any) -> Found[T] | None:
        """Return what a reply says; None where its value can't be used: invalid by a tag, or of another type.

        A value that can't be used is dropped, so that the next read claims its load.

        Raises:
            UnavailableError: Redis was asked again, and did not reply.
        """
        epoch: bytes = b""
        tags: bytes | None = None
        how, holder = b"HIT", b""
        match reply:
            case [b"TAGGED", body, epoch, tags]:
                pass
            case [how, body, holder, _, epoch, tags]:
                pass
            case body:
                pass
        if how == b"TAKEN_OVER":
            self.count["takeover"]()
        if body is None:
            return Found[T](how, None, None, holder.decode())
        if tags is None or await self.are_valid(read_tags(tags), epoch):
            with suppress(UnreadableValueError):
                return Found(how, body, self.values.read(body), holder.decode())
        await self.entries.run(DROP, key, body, epoch or b"")
        return None

    async def are_valid(self, tags: list[str], epoch: bytes) -> bool:
        """Return whether a value is valid whose load began in an epoch: none of its tags was invalidated since.

        Raises:
            UnavailableError: Redis did not reply.
        """
        if not tags:
            return True
        if self._tags is None or any(self._tags.key(tag) in self.owed for tag in tags):
            return False
        return await self._tags.are_valid(tags, epoch=epoch)

    # ── loads ────────────────────────────────────────────────────────────────────────────────────

    async def begin_epoch(self) -> bytes:
        """Return the epoch of a load that begins now; empty in a cache without tags.

        Raises:
            UnavailableError: Redis did not reply.
        """
        return b"" if self._tags is None else await self._tags.advance()

    def renew(self, key: str, token: str) -> None:
        """Extend a claim, if Redis replies."""
        forget(self.entries.run(RENEW, key, token, _CLAIM_MS))

    def release(self, key: str, token: str) -> None:
        """Give a claim back, if Redis replies; otherwise it ends by itself."""
        forget(self.entries.run(RELEASE, key, token, _PAUSE_MS))

    async def store(
        self, key: str, token: str, value: T | None, body: bytes | None, epoch: bytes, *, is_unchanged: bool
    ) -> None:
        """Store a loaded value if its claim still holds; one that is not to be stored ends the claim.

        Args:
            key: its key.
            token: the token of its claim.
            value: the value.
            body: its JSON; None where it has none.
            epoch: the epoch in which its load began.
            is_unchanged: only prolong the stored value, which is the same.

        Raises:
            UnavailableError: Redis did not reply.
        """
        lifetime_ms = self._none_ms if value is None else self._ttl_ms
        if body is not None and len(body) > self._max_bytes:
            self.count["oversized"]()
            body = None
        if body is None or lifetime_ms == 0:
            await self.entries.run(RELEASE, key, token, -1)  # an older value would be wrong by now
            return
        tags = self.values.tags_of(value)
        if self._tags is not None and tags and not await self._tags.use(tags, epoch=epoch):
            await self.entries.run(RELEASE, key, token, -1)
            return
        fresh_ms = max(round(lifetime_ms * random.uniform(1 - SPREAD, 1)), 1)  # noqa: S311 - no secret
        kept_ms = fresh_ms + (0 if value is None else self._stale_ms)
        written = b"" if is_unchanged else body
        await self.entries.run(STORE, key, token, fresh_ms, kept_ms, written, epoch, write_tags(tags))

    # ── invalidations ────────────────────────────────────────────────────────────────────────────

    async def invalidate(self, key: str) -> bool:
        """Drop a value, or owe it, and return whether Redis has confirmed."""
        return await self.owed.tell(key, partial(self._unlink, key))

    async def invalidate_tag(self, tag: str) -> bool | None:
        """Drop all values with a tag, or owe it, and return whether Redis has confirmed; None without tags."""
        tags = self._tags
        return None if tags is None else await self.owed.tell(tags.key(tag), partial(tags.invalidate, tag))

    async def _unlink(self, key: str) -> None:
        await self.entries.execute("UNLINK", key)


def new_token() -> str:
    """Make the token of a claim: 64 random bits."""
    # The generator of `random` is seeded anew in a forked process, unlike one of our own.
    return f"{random.getrandbits(64):x}"
