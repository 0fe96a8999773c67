"""Refresh tokens: good once, forgiving to a lost answer, and the end of the session for whoever uses one again."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from hybridkit.clients import PostgresDataClient
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import ConflictError, DeclarationError, SessionEndedError, StaleVersionError
from hybridkit.security import (
    LOGIN_SESSIONS,
    DataSessions,
    LoginSession,
    LoginSessions,
    SessionRules,
)
from hybridkit.testing import FakeDataService


class Now:
    at = datetime(2026, 11, 30, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def move(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def postgres() -> AsyncGenerator[PostgresDataClient]:
    async with FakeDataService([LOGIN_SESSIONS]).postgres_client(service="shop_api") as client:
        yield client


@pytest.fixture
def store(postgres: PostgresDataClient) -> DataSessions:
    return DataSessions(postgres)


@pytest.fixture
def sessions(store: DataSessions, now: Now) -> LoginSessions:
    return LoginSessions(store, clock=now)


async def is_over(sessions: LoginSessions, token: str) -> bool:
    try:
        await sessions.refresh(token)
    except SessionEndedError as ended:
        assert "invalid_token" in ended.challenge
        return True
    return False


async def test_each_refresh_gives_a_new_token(sessions: LoginSessions, now: Now) -> None:
    """A session goes on through a chain of tokens of 256 bits, none of which is stored."""
    session, token = await sessions.begin("ann", label="Firefox")
    seen = {token}
    for _ in range(5):
        now.move(900)
        renewed, token = await sessions.refresh(token)
        assert (renewed.id, renewed.user_id, renewed.label) == (session.id, "ann", "Firefox")
        seen.add(token)
    assert len(seen) == 6
    [kept] = await sessions.of_user("ann")
    for each in seen:
        assert each.split(".")[1] not in kept.model_dump_json()


async def test_a_lost_answer_is_given_again(sessions: LoginSessions, now: Now) -> None:
    """The token before the present one gets the same successor within the grace period, however often."""
    _, token = await sessions.begin("ann")
    _, successor = await sessions.refresh(token)
    now.move(9)
    for _ in range(3):
        assert (await sessions.refresh(token))[1] == successor
    assert not await is_over(sessions, successor)


@pytest.mark.parametrize("generations", [1, 2, 5])
async def test_a_token_that_is_used_again_ends_the_session(
    sessions: LoginSessions, now: Now, generations: int
) -> None:
    """Any former token of the family, after the grace period, ends the session for the thief and for the owner."""
    _, first = await sessions.begin("ann")
    token = first
    for _ in range(generations):
        now.move(60)
        _, token = await sessions.refresh(token)
    now.move(60)
    assert await is_over(sessions, first)
    assert await is_over(sessions, token)
    assert await sessions.of_user("ann") == []


async def test_an_older_token_ends_the_session_also_within_the_grace_period(sessions: LoginSessions) -> None:
    """Grace is for the last token alone: the one before that has been replaced by somebody who had the successor."""
    _, first = await sessions.begin("ann")
    _, second = await sessions.refresh(first)
    _, third = await sessions.refresh(second)
    assert await is_over(sessions, first)
    assert await is_over(sessions, third)


async def test_two_refreshes_at_once_get_one_successor(sessions: LoginSessions) -> None:
    """One of many simultaneous requests rotates the session, and the others get what it got."""
    _, token = await sessions.begin("ann")
    answers = await asyncio.gather(*(sessions.refresh(token) for _ in range(20)))
    assert len({successor for _, successor in answers}) == 1
    [kept] = await sessions.of_user("ann")
    assert kept.version == 2
    assert not await is_over(sessions, answers[0][1])


async def test_a_guess_ends_no_session(sessions: LoginSessions) -> None:
    """Who knows a session's id, and makes up a token for it, is refused and does no harm."""
    session, token = await sessions.begin("ann")
    _, other = await sessions.begin("bob")
    head, secret, tag = token.split(".")
    wrong = [
        "",
        "x",
        "hkr_",
        f"{head}.{'A' * 43}.{tag}",
        f"{head}.{secret}.{'A' * 22}",
        f"{head}.{secret}",
        f"{head}.{secret}.{tag}.{tag}",
        f"{head}.{secret[:-4]}.{tag}",
        f"{head}.{other.split('.')[1]}.{other.split('.')[2]}",
        f"hkr_{UUID(int=7).hex}.{secret}.{tag}",
        f"{head}.é.{tag}",
    ]
    for each in wrong:
        assert await is_over(sessions, each)
    assert (await sessions.refresh(token))[0].id == session.id


async def test_a_session_ends_at_its_time(sessions: LoginSessions, now: Now) -> None:
    """No chain of refreshes is longer than the session's lifetime, and none has a gap beyond the idle time."""
    _, token = await sessions.begin("ann")
    _, unused = await sessions.begin("ann")
    for _ in range(30):
        now.move(86_399)
        _, token = await sessions.refresh(token)
    assert await is_over(sessions, unused)
    assert len(await sessions.of_user("ann")) == 1
    now.move(86_400)
    assert await sessions.of_user("ann") == []
    assert await is_over(sessions, token)


async def test_sessions_are_listed_and_ended(sessions: LoginSessions) -> None:
    """A user's sessions end one by one, or all but one; those of others do not."""
    mine = [await sessions.begin("ann") for _ in range(4)]
    _, others = await sessions.begin("bob")
    await sessions.end(mine[0][0].id)
    await sessions.end(str(mine[0][0].id))
    await sessions.end("no id")
    assert await is_over(sessions, mine[0][1])
    ended = await sessions.end_all("ann", keep=str(mine[1][0].id))
    assert {each.id for each in ended} == {mine[2][0].id, mine[3][0].id}
    assert [await is_over(sessions, token) for _, token in mine] == [True, False, True, True]
    await sessions.end_all("ann")
    assert await sessions.of_user("ann") == []
    assert not await is_over(sessions, others)


async def test_a_user_has_so_many_sessions(store: DataSessions, now: Now) -> None:
    """A further login ends the session that was used longest ago, and clears away those that are over."""
    sessions = LoginSessions(store, rules=SessionRules(max_per_user=3), clock=now)
    tokens: list[str] = []
    for _ in range(3):
        tokens.append((await sessions.begin("ann"))[1])
        now.move(60)
    _, tokens[0] = await sessions.refresh(tokens[0])
    now.move(60)
    tokens.append((await sessions.begin("ann"))[1])
    assert [await is_over(sessions, token) for token in tokens] == [False, True, False, False]
    now.move(15 * 86_400)
    await sessions.begin("ann")
    assert len(await store.of_user("ann")) == 1


async def test_a_session_that_ends_meanwhile_is_over(store: DataSessions, now: Now) -> None:
    """A logout between reading and rotating refuses the refresh."""

    class Ending(DataSessions):
        async def rotate(self, session: LoginSession, changes: Any) -> LoginSession:
            await self.end(session.id)
            return await super().rotate(session, changes)

    sessions = LoginSessions(Ending(store._client), clock=now)
    _, token = await sessions.begin("ann")
    assert await is_over(sessions, token)


async def test_a_session_that_others_renew_all_the_time_is_a_conflict(store: DataSessions, now: Now) -> None:
    """A store that refuses every rotation is asked a few times."""

    class Busy(DataSessions):
        async def rotate(self, session: LoginSession, changes: Any) -> LoginSession:
            raise StaleVersionError("busy")

    sessions = LoginSessions(Busy(store._client), clock=now)
    _, token = await sessions.begin("ann")
    with pytest.raises(ConflictError):
        await sessions.refresh(token)


async def test_a_logout_that_meets_a_rotation_ends_the_session(store: DataSessions, now: Now) -> None:
    """A session that changes between reading and deleting is deleted nevertheless."""
    sessions = LoginSessions(store, clock=now)
    session, token = await sessions.begin("ann")
    client: Any = store._client
    read, met = client.get_or_none, 0

    async def get_or_none(resource: Any, session_id: Any) -> Any:
        nonlocal met
        found = await read(resource, session_id)
        if met == 0:
            met = 1
            await sessions.refresh(token)
        return found

    client.get_or_none = get_or_none
    await store.end(session.id)
    client.get_or_none = read
    assert await store.get(session.id) is None


async def test_writes_stand_outside_of_a_claim(sessions: LoginSessions, now: Now) -> None:
    """Work that runs again under its idempotency key begins and rotates sessions anew."""
    for _ in range(2):
        with bind(RequestContext(claim=Claim("shop:login:1"))):
            _, token = await sessions.begin("ann")
            await sessions.refresh(token)
            await sessions.end_all("ann")


@pytest.mark.parametrize(
    "rules",
    [
        {"grace_seconds": 61},
        {"grace_seconds": -1},
        {"max_per_user": 0},
        {"idle_seconds": 0},
        {"lifetime_seconds": 367 * 86_400},
        {"lifetime_seconds": 60},
    ],
)
def test_rules_have_ranges(rules: Any) -> None:
    """Sessions without an end, and a grace period that opens reuse, are refused."""
    with pytest.raises(DeclarationError):
        SessionRules(**rules)
