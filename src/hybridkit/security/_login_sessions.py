"""Sessions of people who have signed in: a refresh token for each, rotated at every use.

```
login      id.secret₁                              stored: hash(secret₁)
refresh    id.secret₁ → id.secret₂                 stored: hash(secret₂), hash(secret₁)
again      id.secret₁ → id.secret₂                 within the grace period: the answer was lost on its way
later      id.secret₁ → the session ends           somebody else has had the token
```

A successor is derived from its predecessor and a random number of that rotation. So a client that asks again, and two
that ask at once, get the same one, and a reader of the table can make none.

https://www.rfc-editor.org/rfc/rfc9700#section-4.14
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Protocol
from uuid import UUID

from pydantic import BaseModel, Field

from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.codec import Timestamp
from hybridkit.context import bind, current
from hybridkit.errors import (
    ConflictError,
    DeclarationError,
    NotFoundError,
    SessionEndedError,
    StaleVersionError,
)
from hybridkit.observability import get_logger
from hybridkit.resources import Record, Resource
from hybridkit.security._verification import REFUSED

SECRET_BYTES: Final = 32
TAG_BYTES: Final = 16
TRIES: Final = 5
PREFIX: Final = "hkr_"
"""The beginning of every refresh token, by which scanners find one that has leaked."""
MAX_LABEL: Final = 200

type Text = Annotated[str, Field(max_length=255)]

_log = get_logger("hybridkit.security")


class NewLoginSession(BaseModel):
    """The data of a new session.

    Attributes:
        user_id: the user who has signed in.
        family_key: a random key, by which a token of this session is known even when it is an old one.
        token_hash: the SHA-256 of the present token's secret.
        previous_hash: that of the token before.
        salt: the random number of the last rotation.
        rotated_at: the time of the last rotation, or of the login.
        expires_at: the end of the session, whatever happens until then.
        label: the device, for a list of sessions.
    """

    user_id: Text
    family_key: Text
    token_hash: Text
    previous_hash: Text = ""
    salt: Text = ""
    rotated_at: Timestamp
    expires_at: Timestamp
    label: Text = ""


class LoginSession(NewLoginSession, Record):
    """A session of somebody who has signed in."""


class LoginSessionChanges(BaseModel):
    """The fields that a rotation changes."""

    token_hash: Text | None = None
    previous_hash: Text | None = None
    salt: Text | None = None
    rotated_at: Timestamp | None = None


LOGIN_SESSIONS: Final = Resource(
    "login_sessions",
    record=LoginSession,
    create=NewLoginSession,
    update=LoginSessionChanges,
    filterable=("user_id", "expires_at"),
    sortable=("rotated_at",),
    require_match=True,
)
"""The resource of sessions. Its table has the columns of `hybridkit.dataservice.LoginSessionColumns`; only the API that
people sign in to is granted it."""


class SessionStore(Protocol):
    """Where sessions are kept."""

    async def create(self, session: NewLoginSession) -> LoginSession:
        """Store a new session."""
        ...

    async def get(self, session_id: UUID) -> LoginSession | None:
        """Return a session, or None when it has ended."""
        ...

    async def rotate(self, session: LoginSession, changes: LoginSessionChanges) -> LoginSession:
        """Change a session only if it is as it was read.

        Raises:
            StaleVersionError: it has changed meanwhile.
            NotFoundError: it has ended meanwhile.
        """
        ...

    async def end(self, session_id: UUID) -> None:
        """Remove a session, if it is there."""
        ...

    async def of_user(self, user_id: str) -> Sequence[LoginSession]:
        """Return the sessions of a user."""
        ...


class DataSessions:
    """Sessions in a data service, the `SessionStore` of the SDK.

    Its writes stand outside of the idempotency claim of a request: a rotation has random numbers of its own.

    Args:
        client: the client of the data service that has `LOGIN_SESSIONS`.
    """

    def __init__(self, client: PostgresDataClient | MongoDataClient) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"DataSessions({self._client!r})"

    async def create(self, session: NewLoginSession) -> LoginSession:
        """Store a new session."""
        with bind(replace(current(), claim=None)):
            return await self._client.create(LOGIN_SESSIONS, session)

    async def get(self, session_id: UUID) -> LoginSession | None:
        """Return a session, or None when it has ended."""
        return await self._client.get_or_none(LOGIN_SESSIONS, session_id)

    async def rotate(self, session: LoginSession, changes: LoginSessionChanges) -> LoginSession:
        """Change a session only if it is as it was read.

        Raises:
            StaleVersionError: it has changed meanwhile.
            NotFoundError: it has ended meanwhile.
        """
        with bind(replace(current(), claim=None)):
            return await self._client.update(LOGIN_SESSIONS, session, changes)

    async def end(self, session_id: UUID) -> None:
        """Remove a session, if it is there."""
        with bind(replace(current(), claim=None)), suppress(NotFoundError):
            for _ in range(TRIES):
                session = await self._client.get_or_none(LOGIN_SESSIONS, session_id)
                if session is None:
                    return
                with suppress(StaleVersionError):  # a rotation came between
                    await self._client.delete(LOGIN_SESSIONS, session)
                    return

    async def of_user(self, user_id: str) -> Sequence[LoginSession]:
        """Return the sessions of a user, the one that was used longest ago first."""
        found = self._client.find(LOGIN_SESSIONS).where(LOGIN_SESSIONS["user_id"] == user_id)
        return [session async for session in found.order_by("rotated_at")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """How long sessions last.

    Attributes:
        lifetime_seconds: the longest time from the login, 30 days by default.
        idle_seconds: the longest time without a refresh, 14 days by default.
        grace_seconds: how long the token before the present one gets the same successor again, as an answer may be lost
            on its way; 0 to 60.
        max_per_user: the most sessions of a user; a further login ends the one that was used longest ago.

    Raises:
        DeclarationError: a value is out of its range.
    """

    lifetime_seconds: float = 30 * 86_400.0
    idle_seconds: float = 14 * 86_400.0
    grace_seconds: float = 10.0
    max_per_user: int = 20

    def __post_init__(self) -> None:
        if not (0 < self.idle_seconds <= self.lifetime_seconds <= 366 * 86_400):
            raise DeclarationError(
                "a session lasts for at most a year, and its idle time is not longer than that"
            )
        if not 0 <= self.grace_seconds <= 60 or not 1 <= self.max_per_user <= 1000:
            raise DeclarationError("grace_seconds is from 0 to 60, and max_per_user from 1 to 1000")


class LoginSessions:
    """The sessions of people who have signed in, with a refresh token for each.

    Args:
        store: where they are kept.
        rules: how long they last.
        clock: gives the time in UTC.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        rules: SessionRules | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._rules = rules or SessionRules()
        self._clock = clock

    def __repr__(self) -> str:
        return f"LoginSessions({self._store!r})"

    async def begin(self, user_id: str, *, label: str = "") -> tuple[LoginSession, str]:
        """Begin a session, and return it with its first refresh token.

        Args:
            user_id: the user who has signed in.
            label: the device, such as the `User-Agent`.
        """
        now, secret, key = (
            self._clock(),
            secrets.token_bytes(SECRET_BYTES),
            secrets.token_urlsafe(SECRET_BYTES),
        )
        await self._make_room(user_id, now)
        session = await self._store.create(
            NewLoginSession(
                user_id=user_id,
                family_key=key,
                token_hash=_hash(secret),
                rotated_at=now,
                expires_at=now + timedelta(seconds=self._rules.lifetime_seconds),
                label=label[:MAX_LABEL],
            )
        )
        return session, _token(session, secret)

    async def refresh(self, token: str) -> tuple[LoginSession, str]:
        """Return the session of a refresh token, with the token's successor.

        Raises:
            SessionEndedError: the token is none of ours, or its session has ended; also when it was used before, which
                ends the session.
            ConflictError: other requests rotated the session each time.
        """
        session_id, secret, tag = _parsed(token)
        for _ in range(TRIES):
            session = await self._store.get(session_id)
            if session is None or not hmac.compare_digest(_tag(session.family_key, secret), tag):
                raise _ended("it is of no session")  # a guess ends no session
            now, hashed = self._clock(), _hash(secret)
            if self._is_over(session, now):
                await self._store.end(session.id)
                raise _ended("the session is over")
            if hmac.compare_digest(session.token_hash, hashed):
                salt = secrets.token_urlsafe(16)
                successor = _successor(session.family_key, salt, secret)
                changes = LoginSessionChanges(
                    token_hash=_hash(successor), previous_hash=hashed, salt=salt, rotated_at=now
                )
                try:
                    return await self._store.rotate(session, changes), _token(session, successor)
                except StaleVersionError:
                    continue  # another request rotated it: this token may be its predecessor now
                except NotFoundError:
                    raise _ended("the session has ended meanwhile") from None
            is_lately = now - session.rotated_at <= timedelta(seconds=self._rules.grace_seconds)
            if is_lately and hmac.compare_digest(session.previous_hash, hashed):
                return session, _token(session, _successor(session.family_key, session.salt, secret))
            await self._store.end(session.id)
            _log.warning("refresh token used again", user=session.user_id, session_id=str(session.id))
            raise _ended("it was used before")
        raise ConflictError("the session is being renewed by other requests")

    async def end(self, session_id: UUID | str) -> None:
        """End a session, as a logout does; one that is not there has ended."""
        with suppress(ValueError):
            await self._store.end(session_id if isinstance(session_id, UUID) else UUID(session_id))

    async def end_all(self, user_id: str, *, keep: UUID | str | None = None) -> Sequence[LoginSession]:
        """End all sessions of a user, as when the account is disabled, and return those that were ended.

        Args:
            user_id: the user.
            keep: a session that goes on, as that of the request that changes the password.
        """
        ended = [each for each in await self._store.of_user(user_id) if str(each.id) != str(keep)]
        for each in ended:
            await self._store.end(each.id)
        return ended

    async def of_user(self, user_id: str) -> Sequence[LoginSession]:
        """Return the sessions of a user that are not over."""
        now = self._clock()
        return [each for each in await self._store.of_user(user_id) if not self._is_over(each, now)]

    def _is_over(self, session: LoginSession, now: datetime) -> bool:
        idle_until = session.rotated_at + timedelta(seconds=self._rules.idle_seconds)
        return now >= min(session.expires_at, idle_until)

    async def _make_room(self, user_id: str, now: datetime) -> None:
        known = await self._store.of_user(user_id)
        over = [each for each in known if self._is_over(each, now)]
        alive = sorted((each for each in known if each not in over), key=lambda each: each.rotated_at)
        surplus = alive[: max(0, len(alive) - self._rules.max_per_user + 1)]
        for each in [*over, *surplus]:
            await self._store.end(each.id)


def _ended(reason: str) -> SessionEndedError:
    _log.info("refresh token refused", reason=reason)
    return SessionEndedError("the session has ended: sign in again", challenge=REFUSED)


def _token(session: LoginSession, secret: bytes) -> str:
    return f"{PREFIX}{session.id.hex}.{_encoded(secret)}.{_encoded(_tag(session.family_key, secret))}"


def _parsed(token: str) -> tuple[UUID, bytes, bytes]:
    parts = token.removeprefix(PREFIX).split(".")
    try:
        session_id, secret, tag = UUID(hex=parts[0]), _decoded(parts[1]), _decoded(parts[2])
    except (ValueError, IndexError):
        raise _ended("it is no refresh token") from None
    if len(parts) != 3 or len(secret) != SECRET_BYTES or len(tag) != TAG_BYTES:
        raise _ended("it is no refresh token")
    return session_id, secret, tag


def _hash(secret: bytes) -> str:
    """Return what is stored of a token: 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(secret).hexdigest()


def _tag(family_key: str, secret: bytes) -> bytes:
    return hmac.digest(family_key.encode(), b"tag" + secret, "sha256")[:TAG_BYTES]


def _successor(family_key: str, salt: str, secret: bytes) -> bytes:
    return hmac.digest(f"{family_key}.{salt}".encode(), b"next" + secret, "sha256")


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
