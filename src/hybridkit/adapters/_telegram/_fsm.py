"""Aiogram's finite-state machine in Redis: states and data of dialogues, and the isolation of their updates."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, override
from urllib.parse import quote

from aiogram import Dispatcher
from aiogram.fsm.state import State
from aiogram.fsm.storage.base import BaseEventIsolation, BaseStorage, StateType, StorageKey
from aiogram.fsm.storage.memory import DisabledEventIsolation, MemoryStorage

from hybridkit.adapters._telegram._chat_turns import LEASE_SECONDS, ChatTurns
from hybridkit.codec import decode_json, encode_json
from hybridkit.coordination import Redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._redis._commands import Script
from hybridkit.errors import PayloadTooLargeError

IDLE_SECONDS: Final = 30 * 86_400.0
MAX_DATA_BYTES: Final = 64 * 1024
MAX_NAMES: Final = 1000

_WRITE: Final = Script(
    "WRITE_FSM_DATA",
    """
-- ARGV: 1 to replace the data or 0 to add to it, max_bytes, max_names, idle_ms, then names and values
-- answers: {1, {name, value, …}} | {0, bytes, names}
local kept = ARGV[1] == '1' and {} or redis.call('HGETALL', KEYS[1])
local given, bytes, names = {}, 0, 0
for i = 5, #ARGV, 2 do
    given[ARGV[i]] = true
    bytes = bytes + #ARGV[i] + #ARGV[i + 1]
    names = names + 1
end
for i = 1, #kept, 2 do
    if not given[kept[i]] then
        bytes = bytes + #kept[i] + #kept[i + 1]
        names = names + 1
    end
end
if bytes > tonumber(ARGV[2]) or names > tonumber(ARGV[3]) then
    return {0, bytes, names}
end
if ARGV[1] == '1' then
    redis.call('DEL', KEYS[1])
end
if #ARGV > 4 then
    redis.call('HSET', KEYS[1], unpack(ARGV, 5))
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {1, redis.call('HGETALL', KEYS[1])}
""",
)


class ChatStorage(BaseStorage):
    """The states and data of dialogues in Redis, on the shared connection; the default of `run_bot`.

    A dialogue is forgotten `idle_seconds` after its last use. Data is JSON: what a handler reads is what JSON makes of
    what was written, lists for tuples and texts for dates. Two handlers that change different names of the data at the
    same time lose nothing.

    Args:
        redis: a client from `connect_redis`, whose server evicts nothing; it isn't closed here.
        idle_seconds: the time after which an unused dialogue is forgotten.
        max_data_bytes: the most bytes of a dialogue's data, names included; at most 1,000 names.
    """

    def __init__(
        self, redis: Redis, *, idle_seconds: float = IDLE_SECONDS, max_data_bytes: int = MAX_DATA_BYTES
    ) -> None:
        self._redis = multiplexer_of(redis)
        self._idle_ms = int(idle_seconds * 1000)
        self._max_data_bytes = max_data_bytes

    def __repr__(self) -> str:
        return f"ChatStorage(idle_seconds={self._idle_ms / 1000:g}, max_data_bytes={self._max_data_bytes})"

    @override
    async def set_state(self, key: StorageKey, state: StateType = None) -> None:
        """Set the state of a dialogue; None ends it.

        Raises:
            UnavailableError: Redis does not answer; the state may have been set.
        """
        name = state.state if isinstance(state, State) else state
        if name is None:
            await self._redis.execute("DEL", _key(key, "state"))
        else:
            await self._redis.execute("SET", _key(key, "state"), name, "PX", self._idle_ms)

    @override
    async def get_state(self, key: StorageKey) -> str | None:
        """Return the state of a dialogue, or None without one.

        Raises:
            UnavailableError: Redis does not answer.
        """
        name: bytes | None = await self._redis.execute("GETEX", _key(key, "state"), "PX", self._idle_ms)
        return None if name is None else name.decode()

    @override
    async def set_data(self, key: StorageKey, data: Mapping[str, Any]) -> None:
        """Replace the data of a dialogue.

        Raises:
            PayloadTooLargeError: the data is larger than allowed; nothing was changed.
            MalformedPayloadError: a value has no JSON form.
            UnavailableError: Redis does not answer; the data may have been replaced.
        """
        await self._write(key, data, replaces=True)

    @override
    async def update_data(self, key: StorageKey, data: Mapping[str, Any]) -> dict[str, Any]:
        """Add to the data of a dialogue, in one step, and return all of it.

        Raises:
            PayloadTooLargeError: the data would get larger than allowed; nothing was changed.
            MalformedPayloadError: a value has no JSON form.
            UnavailableError: Redis does not answer; the data may have been changed.
        """
        return await self._write(key, data, replaces=False)

    @override
    async def get_data(self, key: StorageKey) -> dict[str, Any]:
        """Return the data of a dialogue.

        Raises:
            UnavailableError: Redis does not answer.
        """
        return _decoded(await self._read("HGETALL", key))

    @override
    async def get_value(self, storage_key: StorageKey, dict_key: str, default: Any | None = None) -> Any:
        """Return one value of a dialogue's data.

        Raises:
            UnavailableError: Redis does not answer.
        """
        value: bytes | None = await self._read("HGET", storage_key, dict_key)
        return default if value is None else decode_json(value)

    @override
    async def close(self) -> None:
        """Do nothing: the connection belongs to the process."""

    async def _read(self, command: str, key: StorageKey, *names: str) -> Any:
        data_key = _key(key, "data")
        found, _ = await asyncio.gather(
            self._redis.execute(command, data_key, *names),
            self._redis.execute("PEXPIRE", data_key, self._idle_ms),
        )
        return found

    async def _write(self, key: StorageKey, data: Mapping[str, Any], *, replaces: bool) -> dict[str, Any]:
        pairs = [part for name, value in data.items() for part in (name.encode(), encode_json(value))]
        # Before the script, whose arguments are bounded too.
        size_bytes, names = sum(map(len, pairs)), len(data)
        if size_bytes <= self._max_data_bytes and names <= MAX_NAMES:
            limits = (self._max_data_bytes, MAX_NAMES, self._idle_ms)
            is_written, *reply = await self._redis.run(
                _WRITE, [_key(key, "data")], int(replaces), *limits, *pairs
            )
            if is_written:
                return _decoded(reply[0])
            size_bytes, names = reply
        raise PayloadTooLargeError(
            f"the data of a dialogue would have {size_bytes} bytes under {names} names, {self._max_data_bytes} under"
            f" {MAX_NAMES} are allowed: keep in it what the dialogue needs, and the rest in a data service",
            size_bytes=size_bytes,
            limit_bytes=self._max_data_bytes,
        )


class ChatIsolation(BaseEventIsolation):
    """One update of a chat at a time, over all replicas; the default of `run_bot`.

    Those who wait come in the order of their arrival. `run_bot` holds the chat for longer: from before an update's
    claim until after its retries, and in the order of the updates' ids.

    Args:
        redis: a client from `connect_redis`; it isn't closed here.
        lease_seconds: how long a replica that has died keeps a chat.
    """

    def __init__(self, redis: Redis, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._turns = ChatTurns(redis, lease_seconds=lease_seconds)

    def __repr__(self) -> str:
        return f"ChatIsolation({self._turns!r})"

    @override
    @asynccontextmanager
    async def lock(self, key: StorageKey) -> AsyncGenerator[None]:
        """Run the block while no other replica handles an update of the chat.

        Raises:
            LockLostError: another replica has the chat, or Redis did not answer for nearly a lease; the block was
                cancelled.
            UnavailableError: Redis does not answer.
        """
        async with self._turns.hold(key.bot_id, key.chat_id):
            yield

    @override
    async def close(self) -> None:
        """Do nothing: the connection belongs to the process."""


@contextmanager
def fsm_in_redis(dispatcher: Dispatcher, redis: Redis) -> Generator[None]:
    """Give a dispatcher that has Aiogram's defaults the ones that live in Redis, inside the block."""
    fsm = dispatcher.fsm
    before = fsm.storage, fsm.events_isolation
    if type(fsm.storage) is MemoryStorage:
        fsm.storage = ChatStorage(redis)
    if type(fsm.events_isolation) is DisabledEventIsolation:
        fsm.events_isolation = ChatIsolation(redis)
    try:
        yield
    finally:
        fsm.storage, fsm.events_isolation = before


def _key(key: StorageKey, part: str) -> str:
    where = (key.bot_id, key.business_connection_id or "", key.chat_id, key.thread_id or "", key.user_id)
    return f"hk:fsm:{':'.join(quote(str(each), safe='-') for each in where)}:{quote(key.destiny, safe='')}:{part}"


def _decoded(pairs: Sequence[bytes]) -> dict[str, Any]:
    return {name.decode(): decode_json(value) for name, value in zip(pairs[::2], pairs[1::2], strict=True)}
