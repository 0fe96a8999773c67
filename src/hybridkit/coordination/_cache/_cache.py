"""The cache as its users see it: reads that load at most once, and invalidations that nothing overtakes."""

import inspect
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial, wraps
from typing import Any, Final, Protocol, cast, overload

from redis.asyncio import Redis

from hybridkit._syntax import KEY_PART_SYNTAX
from hybridkit.coordination._cache._keys import CacheId
from hybridkit.coordination._cache._loader import InvalidatedError, Loader
from hybridkit.coordination._cache._stored import Found, StoredValues, new_token
from hybridkit.coordination._cache._values import UnreadableValueError
from hybridkit.coordination._process_redis import redis_of_process
from hybridkit.errors import DeclarationError, UnavailableError
from hybridkit.events import Event

MAX_READS: Final = 3
"""The reads for one value, where each finds one that can't be used."""


class _Consumer(Protocol):
    def on(self, message: type[Any], /) -> Callable[[Callable[[Any], Awaitable[None]]], object]: ...


class CachedFunction[T](Protocol):
    """The decorator that `Cache.cached` returns; the function keeps its signature."""

    @overload
    def __call__[**P](self, function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__[**P](
        self, function: Callable[P, Awaitable[T | None]]
    ) -> Callable[P, Coroutine[Any, Any, T | None]]: ...


class Cache[T]:
    """Values of one type in Redis, each loaded when it is first asked for; declared at import, used by the process.

    * One loader runs per key, however many callers and processes ask for it; the others wait for its value.
    * A value is fresh for `ttl_seconds`. For `stale_seconds` more it is still returned, while one process loads it
      anew in the background; if that fails, it is tried again a second later.
    * A caller that comes after an invalidation never gets a value whose load began before it.
    * Where Redis does not answer, values are loaded past it, still once per key in the process. The cache itself
      raises nothing.

    Args:
        name: the name in keys and metrics, unique among the services that share the Redis.
        type_: the type of the values: a model, or anything else that pydantic reads and writes as JSON.
        redis: a client from `connect_redis`; by default that of the process, see `use_redis`.
        ttl_seconds: the time for which a value is fresh; each ends up to a tenth earlier, so that values stored
            together aren't loaded together.
        stale_seconds: the time after that in which the stale value is returned while it is refreshed.
        none_seconds: the time for which the loader's answer None is kept; 0 keeps none, so that a new record is found
            at once.
        load_seconds: the time that one load may take.
        tags: returns the names under which a value can be invalidated together with others, as in
            `lambda user: [f"team:{user.team_id}"]`. A read of a value with tags takes two round trips.
        max_bytes: the largest JSON that is stored.
        timeout_seconds: the time for which Redis is waited for before the value is loaded past it.

    Raises:
        DeclarationError: the name has other characters than letters, digits, `_`, `.` and `-`, or a number is out of
            its range.
    """

    def __init__(
        self,
        name: str,
        type_: type[T],
        *,
        redis: Redis | None = None,
        ttl_seconds: float = 300.0,
        stale_seconds: float = 60.0,
        none_seconds: float = 0.0,
        load_seconds: float = 10.0,
        tags: Callable[[T], Collection[str]] | None = None,
        max_bytes: int = 256 * 1024,
        timeout_seconds: float = 0.05,
    ) -> None:
        if not KEY_PART_SYNTAX.fullmatch(name):
            raise DeclarationError(
                f"a cache's name has up to 100 letters, digits, `_`, `.` and `-`, not {name[:120]!r}"
            )
        if min(ttl_seconds, load_seconds, timeout_seconds) < 0.001 or min(stale_seconds, none_seconds) < 0:
            raise DeclarationError(
                f"cache {name}: ttl_seconds, load_seconds and timeout_seconds are at least 0.001, stale_seconds and"
                " none_seconds at least 0"
            )
        self.name = name
        self._times = f"ttl_seconds={ttl_seconds:g}, stale_seconds={stale_seconds:g}"
        self._stored = StoredValues(
            name,
            type_,
            lambda: redis or redis_of_process(f"cache {name}", cache=True),
            ttl_ms=round(ttl_seconds * 1000),
            stale_ms=round(stale_seconds * 1000),
            none_ms=round(none_seconds * 1000),
            load_ms=round(load_seconds * 1000),
            max_bytes=max_bytes,
            tags=tags,
            timeout_seconds=timeout_seconds,
        )
        self._loader = Loader(self._stored, load_seconds=load_seconds)
        self._count = self._stored.count
        self._count_hit = self._count["hit"]

    def __repr__(self) -> str:
        return f"Cache({self.name!r}, {self._times})"

    # ── reads ────────────────────────────────────────────────────────────────────────────────────

    async def get_or_load[NoneT: None](
        self,
        id: CacheId,
        load: Callable[[], Awaitable[T | NoneT]],
        *,
        refresh: Callable[[T], Awaitable[T | None]] | None = None,
    ) -> T | NoneT:
        """Return the value of an id, from Redis or from a loader.

        A load that has begun goes on when its caller is cancelled. It runs in the caller's context, but without its
        deadline and claim, as others may wait for it too.

        Args:
            id: the id; whatever else the value depends on (a language, a tenant, the user who may see it) belongs
                into it.
            load: returns the value, or None where there is none; the result has the type that it has.
            refresh: returns the value anew, given a stale one. Returning the same object says that it is still right;
                only its lifetime is written then. A data client's `refresh` does so by the record's ETag.

        Raises:
            DeadlinePassedError: the load took longer than `load_seconds`, or than this caller may wait.
            Exception: the loader has raised it; all callers that waited for it get it, and the next one loads again.
        """
        # `cast`: a None comes from this loader, or from another one of this id that returns it too.
        stored = self._stored
        key = stored.key(id)
        if key in stored.owed:
            return cast("T", await self._loader.load_past_redis(key, None, load))
        for _ in range(MAX_READS):
            token = new_token()
            try:
                reply = await stored.ask(key, token)
                if type(reply) is bytes:
                    try:
                        value = cast("T", stored.values.read(reply))
                    except UnreadableValueError:
                        pass
                    else:
                        self._count_hit()
                        return value
                found = await stored.examine(key, reply)
            except UnavailableError:
                return cast("T", await self._loader.load_past_redis(key, token, load))
            if found is not None:
                with suppress(InvalidatedError):
                    return cast("T", await self._go_on(key, token, found, load, refresh))
        # Two versions of the class overwrite each other's values, or invalidations of tags come all the time.
        return cast("T", await self._loader.load_past_redis(key, None, load, may_join=False))

    def cached(self, *, key: str | Callable[..., CacheId]) -> CachedFunction[T]:
        """Decorate an async function with `get_or_load`: its result is the value, the function the loader.

        Args:
            key: the name of the parameter that is the id, or a function from the arguments to the id.

        Raises:
            DeclarationError: the function has no parameter of that name.
        """

        def decorate(function: Callable[..., Awaitable[T | None]]) -> Callable[..., Any]:
            id_of = _argument(function, key) if isinstance(key, str) else key

            @wraps(function)
            async def read(*args: Any, **kwargs: Any) -> T | None:
                load = partial(function, *args, **kwargs)
                return await self.get_or_load(id_of(*args, **kwargs), load)

            return read

        return cast("CachedFunction[T]", decorate)

    async def _go_on(
        self,
        key: str,
        token: str,
        found: Found[T],
        load: Callable[[], Awaitable[T | None]],
        refresh: Callable[[T], Awaitable[T | None]] | None,
    ) -> T | None:
        """Return a value that has tags or is stale, or load the one that is missing."""
        if found.body is not None:
            self._count["hit" if found.how == b"HIT" else "stale"]()
            if found.is_granted:
                old = found.value
                again = load if refresh is None or old is None else partial(refresh, old)
                self._loader.refresh(key, token, again, old=old)
            return found.value
        self._count["miss"]()
        if found.is_granted:
            return await self._loader.load(key, token, load)
        return await self._loader.join(key, found.holder, load)

    # ── invalidations ────────────────────────────────────────────────────────────────────────────

    async def invalidate(self, id: CacheId) -> bool:
        """Drop a value, after what it was loaded from has changed.

        A load that is under way doesn't store its value any more, in whichever process it runs. Where Redis does not
        confirm, this process asks it again until it does, and reads this value past the cache meanwhile. Other
        processes may return the old value until then, at the longest for its lifetime.

        Returns:
            Whether Redis has confirmed.
        """
        key = self._stored.key(id)
        self._loader.loads.forget(key)
        return await self._stored.invalidate(key)

    async def invalidate_tag(self, tag: str) -> bool:
        """Drop all values that have a tag, as `invalidate` does with one.

        Returns:
            Whether Redis has confirmed.

        Raises:
            DeclarationError: the cache was declared without `tags`.
        """
        self._loader.loads.forget_all()
        confirmed = await self._stored.invalidate_tag(tag)
        if confirmed is None:
            raise DeclarationError(f"cache {self.name} has no tags: declare it with tags=")
        return confirmed

    def invalidated_by[EventT: Event](
        self, event: type[EventT], *, key: str | Callable[[EventT], CacheId], consumer: _Consumer
    ) -> None:
        """Register a handler that drops a value when an event says that it has changed.

        One replica handles the event, and the value is dropped for all of them. An event that comes while Redis is down
        is delivered again.

        Args:
            event: the event's class.
            key: the name of the event's field that has the id, or a function from the event to the id.
            consumer: the `RobustConsumer` whose queue gets the events.

        Raises:
            DeclarationError: the event has no such field, or the consumer handles it already.
        """
        if isinstance(key, str) and key not in event.model_fields:
            raise DeclarationError(f"cache {self.name}: {event.__name__} has no field {key!r}")

        async def drop(message: EventT) -> None:
            changed: CacheId = getattr(message, key) if isinstance(key, str) else key(message)
            if not await self.invalidate(changed):
                raise UnavailableError(f"cache {self.name}: Redis did not confirm an invalidation")

        drop.__annotations__["message"] = event  # handlers get their arguments by annotation
        consumer.on(event)(drop)


def _argument(function: Callable[..., Any], name: str) -> Callable[..., CacheId]:
    """Return a function from a call's arguments to the one with that name."""
    signature = inspect.signature(function)
    if name not in signature.parameters:
        raise DeclarationError(f"{getattr(function, '__qualname__', function)!s} has no parameter {name!r}")

    def id_of(*args: Any, **kwargs: Any) -> CacheId:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        return cast("CacheId", call.arguments[name])

    return id_of
