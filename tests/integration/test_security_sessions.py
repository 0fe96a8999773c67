"""Sessions of people in a real PostgreSQL data service: one rotation wins, whoever else asks at the same time."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase

from hybridkit.clients import AsgiTransport, PostgresDataClient
from hybridkit.dataservice import LoginSessionColumns, create_data_service
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.errors import SessionEndedError
from hybridkit.security import LOGIN_SESSIONS, DataSessions, LoginSessions, SessionRules
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings


class Settings(ServiceSettings):
    service_name: str = "accounts"
    database_url: PostgresUrl


class Base(DeclarativeBase):
    pass


class LoginSessionTable(LoginSessionColumns, Base):
    __tablename__ = "login_sessions"


@pytest.fixture
async def replicas(postgres_url: str) -> AsyncGenerator[list[LoginSessions]]:
    """Give two replicas of an API, each with a client of its own."""
    async with migrating_connection(postgres_url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    app = create_data_service(Settings, {LOGIN_SESSIONS: LoginSessionTable})
    app.state.settings = Settings(database_url=SecretUrl(postgres_url))
    async with app.router.lifespan_context(app), AsyncExitStack() as stack:
        yield [
            LoginSessions(
                DataSessions(
                    await stack.enter_async_context(
                        PostgresDataClient("http://data.test", service="api", transport=AsgiTransport(app))
                    )
                ),
                rules=SessionRules(grace_seconds=60, max_per_user=100),
            )
            for _ in range(2)
        ]


async def test_of_simultaneous_refreshes_one_rotates_the_session(replicas: list[LoginSessions]) -> None:
    """Requests at two replicas with one token get one successor, of one rotation, again and again."""
    one, other = replicas
    _, token = await one.begin("ann")
    for rotation in range(10):
        answers = await asyncio.gather(*(each.refresh(token) for each in (one, other) for _ in range(4)))
        [token] = {successor for _, successor in answers}
        [session] = await one.of_user("ann")
        assert session.version == rotation + 2


async def test_a_thief_and_the_owner_can_not_both_go_on(replicas: list[LoginSessions]) -> None:
    """Of two who have the same token at different times, neither has a session in the end."""
    thief, owner = replicas
    _, first = await owner.begin("ann")
    _, stolen = await thief.refresh(first)
    _, stolen = await thief.refresh(stolen)
    for sessions, token in ((owner, first), (thief, stolen)):
        with pytest.raises(SessionEndedError):
            await sessions.refresh(token)
    assert list(await owner.of_user("ann")) == []


async def test_a_logout_wins_over_refreshes(replicas: list[LoginSessions]) -> None:
    """A session that is ended while others renew it is over for all of them."""
    one, other = replicas
    session, token = await one.begin("ann")

    async def keep_renewing(sessions: LoginSessions) -> None:
        current = token
        while True:
            _, current = await sessions.refresh(current)

    renewing = [asyncio.create_task(keep_renewing(each)) for each in (one, other)]
    done: Any = asyncio.gather(*renewing, return_exceptions=True)
    await one.end(session.id)
    assert {type(each) for each in await done} == {SessionEndedError}
    assert list(await other.of_user("ann")) == []


async def test_the_sessions_of_a_user_end_together(replicas: list[LoginSessions]) -> None:
    """All sessions of an account that is disabled are gone, and nobody else's."""
    one, other = replicas
    tokens = [(await one.begin("ann"))[1] for _ in range(5)]
    _, bobs = await other.begin("bob")
    assert len(await other.end_all("ann")) == 5
    for token in tokens:
        with pytest.raises(SessionEndedError):
            await one.refresh(token)
    assert (await one.refresh(bobs))[0].user_id == "bob"
