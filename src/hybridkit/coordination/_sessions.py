"""Sessions of users: typed data in Redis, found by a secret id that only the user's browser has.

An id is a name and a secret, `NAME.SECRET`. The name finds the record and stays for the life of the session; the
secret, of which Redis has the SHA-256 only, is replaced by a rotation. So a rotation is one step on one key: the old id
is dead at once, and who lists and revokes sessions by their names can't be overtaken by it.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote
from weakref import WeakValueDictionary

from pydantic import BaseModel, TypeAdapter
from redis.asyncio import Redis

from hybridkit._syntax import NAME_SYNTAX
from hybridkit.codec import check_size, encode_json, validate_json
from hybridkit.context import is_context_id
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._process_redis import redis_of_process
from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.coordination._session_scripts import CREATE, DESCRIBE, END, ENTER, LOAD, ROTATE, SAVE
from hybridkit.errors import (
    DeclarationError,
    MalformedPayloadError,
    MisuseError,
    NotFoundError,
    SessionEndedError,
    StaleVersionError,
)
from hybridkit.observability import get_logger, metrics

MAX_LABEL_CHARACTERS: Final = 200
MAX_KEY_CHARACTERS: Final = 300
UPDATE_ATTEMPTS: Final = 10
"""How often `update` reads the data again; each attempt of one request means that another one has succeeded."""

_REF: Final = re.compile(r"[A-Za-z0-9_-]{22}")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}")

_log = get_logger("hybridkit.coordination")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as its user may see it in a list. Nothing of it opens the session.

    Attributes:
        ref: the name of the session, for `Sessions.revoke`.
        user_id: the user who has signed in; None before that.
        label: what the user recognises the session by, such as the name of the browser.
        created_at: the time of the creation, by Redis's clock, as the other times.
        last_seen_at: the time of the last request.
        ends_at: the time at which the session ends, used or not.
    """

    ref: str
    user_id: str | None
    label: str
    created_at: datetime
    last_seen_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Session[T: BaseModel](SessionInfo):
    """A session as it was read.

    Attributes:
        id: the secret that the browser keeps in its cookie. Whoever has it is the user, so it belongs into no log.
        data: the data.
        version: the number of times the data was written.
    """

    id: str = field(repr=False)
    data: T
    version: int


class Sessions[T: BaseModel]:
    """The sessions of one application in Redis.

    A session ends when it was not used for `idle_seconds`, and at the latest `lifetime_seconds` after the login. Both
    are measured by Redis's clock. While Redis is down, no session can be read or changed: all methods raise
    `UnavailableError`.

    Args:
        name: the name of these sessions, in snake_case; it is in the keys and in the metric.
        data: the model of the data. It is stored as JSON. A field that is added later needs a default, as a session
            that does not fit the model counts as ended.
        redis: a client from `connect_redis`, whose server evicts nothing; by default that of the process, see
            `use_redis`. It isn't closed here.
        idle_seconds: the time after which an unused session ends.
        lifetime_seconds: the time after which a session ends in any case.
        max_data_bytes: the most bytes of the data as JSON.
        max_per_user: the most sessions of one user. With one more, the one that was used longest ago ends.
        key_prefix: the beginning of all keys in Redis.

    Raises:
        DeclarationError: the name is not in snake_case, or a limit is not positive.
    """

    def __init__(
        self,
        name: str,
        data: type[T],
        *,
        redis: Redis | None = None,
        idle_seconds: float = 1800.0,
        lifetime_seconds: float = 43_200.0,
        max_data_bytes: int = 4096,
        max_per_user: int = 20,
        key_prefix: str = "hk:session:",
    ) -> None:
        if not NAME_SYNTAX.fullmatch(name):
            raise DeclarationError(
                f"the name of sessions is in snake_case, at most 63 characters, not {name!r}"
            )
        if min(idle_seconds, lifetime_seconds, max_data_bytes, max_per_user) <= 0:
            raise DeclarationError(f"the limits of the sessions {name!r} must be positive")
        self.name = name
        self.lifetime_seconds = lifetime_seconds
        self._data: TypeAdapter[T] = TypeAdapter(data)
        self._client = redis
        self._idle_ms = _milliseconds(idle_seconds)
        self._lifetime_ms = _milliseconds(lifetime_seconds)
        self._max_data_bytes = max_data_bytes
        self._max_per_user = max_per_user
        self._prefix = f"{key_prefix}{name}:"
        self._updating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"Sessions({self.name!r}, idle_seconds={self._idle_ms / 1000}, lifetime_seconds={self.lifetime_seconds})"

    # ── one session ──────────────────────────────────────────────────────────────────────────────

    async def create(self, data: T, *, user_id: str | None = None, label: str = "") -> Session[T]:
        """Begin a session.

        Args:
            data: the data.
            user_id: the user who has signed in; None for a session of somebody unknown, which `rotate` signs in.
            label: what the user recognises the session by; cut to 200 characters.

        Raises:
            PayloadTooLargeError: the data is larger than `max_data_bytes`.
            MalformedPayloadError: the data has no JSON form.
            ValueError: the user's id is not 1 to 255 characters without control characters.
            UnavailableError: Redis does not answer.
        """
        body = self._encoded(data)
        user = _checked_user(user_id)
        session_id = _new_id(secrets.token_urlsafe(16))
        ref = session_id[:22]
        _, *record = await self._redis.run(
            CREATE,
            [self._record_key(ref)],
            _digest(session_id),
            user,
            _printable(label),
            body,
            self._idle_ms,
            self._lifetime_ms,
        )
        if user:
            # After the record: whoever tidies the list up takes an entry without a record for an ended session.
            await self._enter(user, ref)
        self._count("created")
        return self._session(session_id, record)

    async def load(self, session_id: str) -> Session[T] | None:
        """Return the session with an id, which counts as used now, or None when there is none (any more).

        Args:
            session_id: what the browser has sent, whatever it is.

        Raises:
            UnavailableError: Redis does not answer.
        """
        if not _ID.fullmatch(session_id):
            self._count("malformed")
            return None
        key = self._record_key(session_id[:22])
        state, *record = await self._redis.run(LOAD, [key], _digest(session_id), self._idle_ms)
        if state != b"OK":
            self._count("unknown" if state == b"GONE" else "wrong_secret")
            return None
        try:
            return self._session(session_id, record)
        except MalformedPayloadError as error:
            self._count("unreadable")
            _log.warning("the data of a session can't be read", sessions=self.name, reason=str(error))
            return None

    async def save(self, session: Session[T], data: T) -> Session[T]:
        """Replace the data of a session, and return the session as it is then.

        Of two requests that save what they have read at the same time, the second one is refused. `update` applies a
        change to what is there instead.

        Raises:
            StaleVersionError: the data was written since the session was read; nothing was changed.
            SessionEndedError: the session was ended, revoked or rotated, or its time is over.
            PayloadTooLargeError: the data is larger than `max_data_bytes`.
            MalformedPayloadError: the data has no JSON form.
            UnavailableError: Redis does not answer; the data may have been written.
        """
        state, *record = await self._redis.run(
            SAVE,
            [self._record_key(session.ref)],
            _digest(session.id),
            self._idle_ms,
            session.version,
            secrets.token_hex(8),
            self._encoded(data),
        )
        if state == b"STALE":
            raise StaleVersionError(
                "another request has saved the session since it was read: use update(), or read it again"
            )
        self._check_there(state)
        return self._session(session.id, record)

    async def update(self, session: Session[T], change: Callable[[T], T]) -> Session[T]:
        """Apply a change to the data that the session has now, again if another request saves at the same time.

        Args:
            session: the session.
            change: makes the new data of the present one; it may be called several times.

        Raises:
            StaleVersionError: requests of other processes have saved in between ten times in a row.
            SessionEndedError: the session was ended, revoked or rotated, or its time is over.
            PayloadTooLargeError: the data is larger than `max_data_bytes`.
            MalformedPayloadError: the data has no JSON form.
            UnavailableError: Redis does not answer; the change may have been made.
        """
        present = session
        # Requests of this process take turns; only those of other processes can come in between.
        async with self._updating.setdefault(session.ref, asyncio.Lock()):
            for _ in range(UPDATE_ATTEMPTS - 1):
                try:
                    return await self.save(present, change(present.data))
                except StaleVersionError:
                    reread = await self.load(session.id)
                if reread is None:
                    raise _ended()
                present = reread
            return await self.save(present, change(present.data))

    async def rotate(self, session: Session[T], *, user_id: str | None = None) -> Session[T]:
        """Give a session a new id; the old one is dead at once. The data stays as it is now.

        Do so at each login and at each change of rights: whoever has planted or seen the old id is left without.

        Args:
            session: the session.
            user_id: the user who has signed in, in a session without a user or with the same one; its lifetime begins
                anew then.

        Raises:
            SessionEndedError: the session was ended, revoked or rotated, or its time is over.
            MisuseError: the session is another user's. End it, and create one.
            ValueError: the user's id is not 1 to 255 characters without control characters.
            UnavailableError: Redis does not answer. The old id may be dead, so the user has to sign in again.
        """
        user = _checked_user(user_id)
        session_id = _new_id(session.ref)
        state, *record = await self._redis.run(
            ROTATE,
            [self._record_key(session.ref)],
            _digest(session.id),
            self._idle_ms,
            _digest(session_id),
            user,
            self._lifetime_ms,
        )
        if state == b"OTHER_USER":
            raise MisuseError(
                f"the session {self.name!r} is another user's: end it, and create one for the user who signs in"
            )
        self._check_there(state)
        if user:
            await self._enter(user, session.ref)
        self._count("rotated")
        return self._session(session_id, record)

    async def end(self, session: Session[T]) -> None:
        """End a session, as a logout does. One that has ended is no error.

        Raises:
            UnavailableError: Redis does not answer; the session may have ended.
        """
        await self._redis.run(END, [self._record_key(session.ref)], _digest(session.id), "")
        if session.user_id is not None:
            await self._redis.execute("ZREM", self._list_key(session.user_id), session.ref)
        self._count("ended")

    # ── the sessions of a user ───────────────────────────────────────────────────────────────────

    async def of_user(self, user_id: str) -> Sequence[SessionInfo]:
        """Return the sessions of a user, the last used one first.

        Raises:
            ValueError: the user's id is not 1 to 255 characters without control characters.
            UnavailableError: Redis does not answer.
        """
        refs = await self._refs_of(_checked_user(user_id))
        # Asked in one turn of the event loop, so all of them travel in one write.
        asked = (self._redis.run(DESCRIBE, [self._record_key(ref)], self._idle_ms) for ref in refs)
        found: list[SessionInfo] = []
        ended: list[str] = []
        for ref, (state, *record) in zip(refs, await asyncio.gather(*asked), strict=True):
            if state == b"OK":
                found.append(_info(ref, record))
            else:
                ended.append(ref)
        if ended:
            await self._redis.execute("ZREM", self._list_key(user_id), *ended)
        return sorted(found, key=lambda info: info.last_seen_at, reverse=True)

    async def revoke(self, user_id: str, ref: str) -> None:
        """End one session of a user, wherever it is used. A request that has read it goes on; its `save` is refused.

        Args:
            user_id: the user, whose session it must be.
            ref: the session's `ref`.

        Raises:
            NotFoundError: the user has no such session.
            ValueError: the user's id is not 1 to 255 characters without control characters.
            UnavailableError: Redis does not answer; the session may have ended.
        """
        key = self._list_key(_checked_user(user_id))
        if not _REF.fullmatch(ref) or await self._redis.execute("ZSCORE", key, ref) is None:
            raise NotFoundError("the user has no such session")
        await self._end_listed(user_id, [ref], "revoked")

    async def revoke_all(self, user_id: str, *, keep: Session[T] | None = None) -> None:
        """End all sessions of a user, as a new password or a disabled account asks for.

        Args:
            user_id: the user.
            keep: a session to leave, which is that of the user's own request. Rotate it too.

        Raises:
            ValueError: the user's id is not 1 to 255 characters without control characters.
            UnavailableError: Redis does not answer; some of the sessions may have ended.
        """
        refs = await self._refs_of(_checked_user(user_id))
        await self._end_listed(user_id, [ref for ref in refs if keep is None or ref != keep.ref], "revoked")

    # ── how ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def _redis(self) -> Multiplexer:
        return multiplexer_of(self._client or redis_of_process(f"the sessions {self.name}"))

    def _record_key(self, ref: str) -> str:
        return f"{self._prefix}record:{ref}"

    def _list_key(self, user: str) -> str:
        text = quote(user, safe="")
        return f"{self._prefix}user:{text if len(text) <= MAX_KEY_CHARACTERS else _digest(text).hex()}"

    def _encoded(self, data: T) -> bytes:
        body = encode_json(data)
        check_size(body, limit_bytes=self._max_data_bytes)
        return body

    def _session(self, session_id: str, record: Sequence[Any]) -> Session[T]:
        info = _info(session_id[:22], record)
        return Session(
            id=session_id,
            ref=info.ref,
            user_id=info.user_id,
            label=info.label,
            created_at=info.created_at,
            last_seen_at=info.last_seen_at,
            ends_at=info.ends_at,
            version=int(record[5]),
            data=validate_json(self._data, record[6], what="the data of the session"),
        )

    def _check_there(self, state: bytes) -> None:
        if state != b"OK":
            raise _ended()

    async def _enter(self, user: str, ref: str) -> None:
        """Add a session to its user's list, and end those that are too many."""
        count = await self._redis.run(ENTER, [self._list_key(user)], ref, self._lifetime_ms)
        if count > self._max_per_user:
            others = [info.ref for info in await self.of_user(user) if info.ref != ref]
            await self._end_listed(user, others[self._max_per_user - 1 :], "crowded_out")

    async def _refs_of(self, user: str) -> list[str]:
        refs: list[bytes] = await self._redis.execute("ZRANGE", self._list_key(user), 0, -1)
        return [ref.decode() for ref in refs]

    async def _end_listed(self, user: str, refs: Collection[str], outcome: str) -> None:
        if not refs:
            return
        await asyncio.gather(*(self._redis.run(END, [self._record_key(ref)], "", user) for ref in refs))
        # Last, as a session that is not in the list can't be revoked.
        await self._redis.execute("ZREM", self._list_key(user), *refs)
        self._count(outcome, len(refs))

    def _count(self, outcome: str, count: int = 1) -> None:
        metrics.sessions.labels(self.name, outcome).inc(count)


def _ended() -> SessionEndedError:
    return SessionEndedError("the session has ended: sign in again")


def _info(ref: str, record: Sequence[Any]) -> SessionInfo:
    user, label, created, seen, ends = record[:5]
    return SessionInfo(
        ref=ref,
        user_id=user.decode() or None,
        label=label.decode(),
        created_at=_moment(created),
        last_seen_at=_moment(seen),
        ends_at=_moment(ends),
    )


def _moment(milliseconds: bytes) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _new_id(ref: str) -> str:
    return f"{ref}.{secrets.token_urlsafe(32)}"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _milliseconds(seconds: float) -> int:
    return max(int(seconds * 1000), 1)


def _printable(label: str) -> str:
    return "".join(each if each.isprintable() else " " for each in label[:MAX_LABEL_CHARACTERS])


def _checked_user(user_id: str | None) -> str:
    if user_id is not None and not is_context_id(user_id):
        raise ValueError(
            "a user's id has 1 to 255 characters, without control characters and line separators"
        )
    return user_id or ""
