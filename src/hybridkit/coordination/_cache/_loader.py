"""Loads of one cache: a value is loaded, given to all who wait for it, and stored if its claim still holds."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Final, Self

from hybridkit.context import bind, current
from hybridkit.coordination._cache._loads import Load, Loaded, Loads
from hybridkit.coordination._cache._stored import CLAIM_SECONDS, StoredValues, new_token
from hybridkit.errors import DeadlinePassedError, UnavailableError
from hybridkit.retry import Retry

_POLLS: Final = Retry.exponential(first_seconds=0.005, cap_seconds=0.05, attempts=sys.maxsize)

type LoadFunction[T] = Callable[[], Awaitable[T | None]]


class InvalidatedError(Exception):
    """A value may not be given to a caller who came after the invalidation of one of its tags."""


class Loader[T]:
    """Loads the values of one cache, one of a key at a time.

    Args:
        stored: the values in Redis.
        load_seconds: the time that one load may take.
    """

    def __init__(self, stored: StoredValues[T], *, load_seconds: float) -> None:
        self.loads: Loads[T] = Loads()
        self._stored = stored
        self._load_seconds = load_seconds

    def __repr__(self) -> str:
        return f"Loader({self._stored.name!r}, {self.loads!r})"

    async def load(self, key: str, token: str, load: LoadFunction[T]) -> T | None:
        """Load a value under a claim that was granted."""
        return (await self.loads.start(key, token, partial(self._fill, load=load)).wait()).value

    def refresh(self, key: str, token: str, load: LoadFunction[T], *, old: T | None) -> None:
        """Load a value in the background, to replace an old one."""
        self.loads.start(key, token, partial(self._fill, load=load, old=old))

    async def join(self, key: str, holder: str, load: LoadFunction[T]) -> T | None:
        """Wait for a load that runs under another's claim, in this process or another one.

        Raises:
            InvalidatedError: a tag of the value was invalidated after its load had begun.
        """
        running = self.loads.find(key, holder)
        if running is None:
            return (await self.loads.start(key, holder, partial(self._follow, load=load)).wait()).value
        value = self._own_copy(await running.wait())
        # Unlike that of an id, an invalidation of a tag leaves the claim, by which this load was found.
        if running.epoch and not await self._is_valid(value, running.epoch):
            raise InvalidatedError
        return value

    async def _is_valid(self, value: T | None, epoch: bytes) -> bool:
        try:
            return await self._stored.are_valid(self._stored.values.tags_of(value), epoch)
        except UnavailableError:
            return False

    async def load_past_redis(
        self, key: str, token: str | None, load: LoadFunction[T], *, may_join: bool = True
    ) -> T | None:
        """Load a value, or wait for any load of it in this process, as Redis can't be asked.

        Args:
            key: the key.
            token: the token of a claim that Redis may have granted; None where it can't have.
            load: the loader.
            may_join: wait for a load that runs already, whenever it began.
        """
        self._stored.count["fallback"]()
        running = self.loads.find(key, None) if may_join else None
        if running is not None:
            return self._own_copy(await running.wait())
        return (await self.loads.start(key, token, partial(self._fill, load=load)).wait()).value

    def _own_copy(self, loaded: Loaded[T]) -> T | None:
        """Return the value for one more caller, who may change it without the others seeing that."""
        return loaded.value if loaded.body is None else self._stored.values.read(loaded.body)

    async def _fill(self, running: Load[T], *, load: LoadFunction[T], old: T | None = None) -> None:
        if running.token is not None:
            try:
                running.epoch = await self._stored.begin_epoch()
            except UnavailableError:
                running.token = None  # nobody knows which invalidations the value will have seen
        try:
            with (
                nullcontext() if running.token is None else _Renewal(self._stored, running.key, running.token)
            ):
                value = await self._call(load)
        except BaseException as error:
            running.fail(error)
            if running.token is not None:
                self._stored.release(running.key, running.token)
            if not isinstance(error, Exception):
                raise
            return
        body = self._stored.values.write(value)
        running.succeed(Loaded(value, body))
        if running.token is None:
            return
        is_unchanged = value is not None and value is old
        with suppress(UnavailableError):  # then the next caller loads it
            # Without tags it is sent in this turn, and so before anything that the callers ask next.
            await self._stored.store(
                running.key, running.token, value, body, running.epoch, is_unchanged=is_unchanged
            )

    async def _call(self, load: LoadFunction[T]) -> T | None:
        shared = replace(current(), claim=None, deadline=time.monotonic() + self._load_seconds)
        limit = asyncio.timeout(self._load_seconds)
        try:
            async with limit:
                with bind(shared):
                    return await load()
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlinePassedError(
                f"cache {self._stored.name}: a load took longer than {self._load_seconds:g} s"
            ) from None

    async def _follow(self, running: Load[T], *, load: LoadFunction[T]) -> None:
        """Wait for the value that another process loads, and load it where that comes to nothing."""
        self._stored.count["wait"]()
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._load_seconds
        pauses = _POLLS.pauses()
        while True:
            await asyncio.sleep(next(pauses))
            token = new_token()
            try:
                found = await self._stored.examine(running.key, await self._stored.ask(running.key, token))
            except UnavailableError:
                break
            if found is None or (found.how == b"HELD" and found.body is None and loop.time() > give_up_at):
                break
            if found.body is not None:
                running.succeed(Loaded(found.value, found.body))
            if found.is_granted:
                running.token = token
                await self._fill(running, load=load)
                return
            if found.body is not None:
                return
            running.token = found.holder
        running.token = None
        await self._fill(running, load=load)


class _Renewal[T]:
    """Renews the claim of a load inside the block."""

    def __init__(self, stored: StoredValues[T], key: str, token: str) -> None:
        self._stored = stored
        self._key = key
        self._token = token

    def __enter__(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(CLAIM_SECONDS / 3, self._renew)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _renew(self) -> None:
        self._stored.renew(self._key, self._token)
        self.__enter__()
