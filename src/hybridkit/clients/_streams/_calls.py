"""The calls of a client on streams: append, load, decide, read."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlencode
from weakref import WeakValueDictionary

from pydantic import BaseModel, TypeAdapter

from hybridkit.clients._answers import adapter_of, read_answer
from hybridkit.clients._modify import LOST_RACES
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._texts import quoted
from hybridkit.clients._streams._appends import PlannedAppend, StreamId, plan_append
from hybridkit.clients._streams._snapshots import FoundSnapshot, used_snapshot
from hybridkit.clients._transports._base import Response
from hybridkit.clients._write_identity import WriteStep, begin_write
from hybridkit.codec import encode_json
from hybridkit.context import bind, current
from hybridkit.contract import MAX_STREAM_PAGE, AppendResult
from hybridkit.contract._headers import IDEMPOTENCY_KEY_HEADER, quote_key
from hybridkit.errors import DeadlinePassedError, NotFoundError, StaleVersionError
from hybridkit.events import Event
from hybridkit.observability import metrics
from hybridkit.streams import Loaded, LogPage, RecordedEvent, Stream
from hybridkit.streams._stream import AnyStream

JSON: Final = {"content-type": "application/json"}

type Decide[StateT] = Callable[[StateT], Iterable[Event]]
"""A pure function from a state to the events that follow; called again where another append came first."""


class _StreamPage(BaseModel):
    """A page of one stream; `done` is the version that an earlier append with the same key has reached."""

    version: int
    done: int | None
    snapshot: FoundSnapshot | None
    events: tuple[RecordedEvent, ...]


class StreamCalls:
    """The calls of one client on streams.

    Args:
        send: sends a request through the client's pipeline.
        seconds: the time that `decide` has for all of its tries.
    """

    def __init__(self, send: Callable[[Intent], Awaitable[Response]], *, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"StreamCalls({self._seconds} s)"

    async def load[StateT: BaseModel](
        self, stream: Stream[StateT], stream_id: str, *, at_version: int | None
    ) -> Loaded[StateT]:
        """Return the state of a stream, from its snapshot and the events behind it."""
        loaded, _ = await self._load(stream, stream_id, at_version=at_version)
        return loaded

    async def _load[StateT: BaseModel](
        self,
        stream: Stream[StateT],
        stream_id: str,
        *,
        at_version: int | None = None,
        write: WriteStep | None = None,
        begin: Loaded[StateT] | None = None,
    ) -> tuple[Loaded[StateT], int | None]:
        """Return the state, and the version that an earlier run of a write has reached, if there was one.

        Args:
            stream: the kind of stream.
            stream_id: its id.
            at_version: the version whose state to return; None for the last one.
            write: the write that the state is for.
            begin: the stream as it was read before, whose events needn't be read again.
        """
        is_cached = begin is None and stream.snapshot_every is not None
        loaded = begin or Loaded(stream_id, stream.initial(), 0)
        page = await self._page(
            stream,
            stream_id,
            loaded.version,
            at_version,
            state_version=stream.state_version if is_cached else None,
            write=write,
        )
        done = page.done
        if at_version is not None and page.version < at_version:
            raise NotFoundError(
                f"{stream.name} {stream_id} has {page.version} events, so there is no version {at_version}"
            )
        if page.snapshot is not None:
            found = used_snapshot(stream, stream_id, page.snapshot)
            if found is None:  # its events are needed after all
                page = await self._page(stream, stream_id, 0, at_version)
            loaded = found or loaded
        end = page.version if at_version is None else at_version
        state, version = loaded.state, loaded.version
        while True:
            state = stream.fold((each.event for each in page.events), state=state)
            version = page.events[-1].version if page.events else version
            if version >= end or not page.events:
                return Loaded(stream_id, state, version, loaded.snapshot_version), done
            page = await self._page(stream, stream_id, version, end)

    async def events(self, stream: AnyStream, stream_id: str, *, after: int) -> AsyncGenerator[RecordedEvent]:
        """Yield the events of a stream, in their order."""
        while True:
            page = await self._page(stream, stream_id, after, None)
            for event in page.events:
                yield event
            if not page.events or page.events[-1].version >= page.version:
                return
            after = page.events[-1].version

    async def log(
        self, stream: AnyStream, *, after: str | None, types: Sequence[type[Event]], page_size: int
    ) -> LogPage:
        """Return a page of the log."""
        params = {
            "after": after,
            "types": ",".join(sorted({event.message_type for event in types})) or None,
            "page_size": None if page_size == MAX_STREAM_PAGE else page_size,
        }
        response = await self._send(_get(stream.path, params))
        adapter: TypeAdapter[LogPage] = adapter_of(LogPage)
        return read_answer(adapter, response, what=f"a page of the log of {stream.name}")

    async def append[StateT: BaseModel](
        self,
        stream: Stream[StateT],
        loaded_or_id: Loaded[StateT] | StreamId,
        events: Sequence[Event],
        *,
        expected: int | None,
        step: str | None,
    ) -> int:
        """Append events, and return the version of the last one."""
        stream_id = loaded_or_id.id if isinstance(loaded_or_id, Loaded) else loaded_or_id
        types = [event.message_type for event in events]
        with begin_write(
            f"append {stream.name} {stream_id}", method="append", step=step, content=(expected, types)
        ) as write:
            planned = plan_append(stream, loaded_or_id, events, expected=expected, id_of=write.id_of)
            return await self._append(stream, planned, write)

    async def decide[StateT: BaseModel](
        self, stream: Stream[StateT], stream_id: str, decide: Decide[StateT], *, step: str | None
    ) -> Loaded[StateT]:
        """Load a stream, append what follows from its state, and do both again where another append came first."""
        content = getattr(decide, "__code__", decide)
        with (
            bind(current().within(self._seconds)),
            # Only what was done is recorded under a key, so each try can have the same; a rerun finds it.
            begin_write(
                f"decide {stream.name} {stream_id}", method="decide", step=step, content=content
            ) as write,
        ):
            async with self._turn(stream.name, stream_id):
                return await self._decide(stream, stream_id, decide, write)

    async def _decide[StateT: BaseModel](
        self, stream: Stream[StateT], stream_id: str, decide: Decide[StateT], write: WriteStep
    ) -> Loaded[StateT]:
        pauses = LOST_RACES.pauses()
        loaded: Loaded[StateT] | None = None
        while True:
            loaded, done = await self._load(stream, stream_id, write=write, begin=loaded)
            if done is not None:
                return await self.load(stream, stream_id, at_version=done)
            events = list(decide(loaded.state))
            if not events:
                return loaded
            planned = plan_append(stream, loaded, events, id_of=write.id_of)
            try:
                version = await self._append(stream, planned, write)
            except StaleVersionError as stale:
                metrics.stream_conflicts.labels(stream.name).inc()
                pause_seconds = next(pauses, None)
                if pause_seconds is None:
                    stale.add_note(f"given up after {LOST_RACES.attempts} tries")
                    raise
                await asyncio.sleep(pause_seconds)
                continue
            after = planned.after
            if after is None or version != after.version:  # of an earlier try of the same write
                return await self.load(stream, stream_id, at_version=version)
            return after

    @asynccontextmanager
    async def _turn(self, name: str, stream_id: str) -> AsyncGenerator[None]:
        """Let one task of this process at a time decide on a stream; more would only overtake each other.

        Raises:
            DeadlinePassedError: the time was over while others decided.
        """
        turn = self._turns.setdefault((name, stream_id), asyncio.Lock())
        try:
            async with asyncio.timeout(current().remaining_seconds()):
                await turn.acquire()
        except TimeoutError:
            raise DeadlinePassedError(
                f"{name} {stream_id}: others decided on it until the deadline; nothing was appended"
            ) from None
        try:
            yield
        finally:
            turn.release()

    async def _append[StateT: BaseModel](
        self, stream: Stream[StateT], planned: PlannedAppend[StateT], write: WriteStep
    ) -> int:
        path = f"{stream.path}/{quoted(planned.id)}:append"
        request = Intent(
            method="POST", path=path, headers=JSON, body=encode_json(planned.body), key=write.key
        )
        adapter: TypeAdapter[AppendResult] = adapter_of(AppendResult)
        return read_answer(adapter, await self._send(request), what="the version of an append").version

    async def _page(
        self,
        stream: AnyStream,
        stream_id: str,
        after: int,
        up_to: int | None,
        *,
        state_version: int | None = None,
        write: WriteStep | None = None,
    ) -> _StreamPage:
        params = {"after": after or None, "up_to": up_to, "state_version": state_version}
        headers = (
            {} if write is None or not write.is_derived else {IDEMPOTENCY_KEY_HEADER: quote_key(write.key)}
        )
        request = _get(f"{stream.path}/{quoted(stream_id)}", params, headers)
        adapter: TypeAdapter[_StreamPage] = adapter_of(_StreamPage)
        return read_answer(adapter, await self._send(request), what=f"a page of {stream.name}")


def _get(path: str, params: Mapping[str, str | int | None], headers: dict[str, str] | None = None) -> Intent:
    given = {name: value for name, value in params.items() if value is not None}
    url = f"{path}?{urlencode(given)}" if given else path
    return Intent(method="GET", path=url, headers=headers or {}, safe=True)
