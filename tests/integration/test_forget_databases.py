"""Forgetting a person on real databases: the canary in every field is nowhere afterwards."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from pymongo import AsyncMongoClient
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.clients import AsgiTransport, PostgresDataClient
from hybridkit.dataservice import (
    DocumentCollection,
    RecordColumns,
    StreamColumns,
    create_data_service,
    saga_collections,
    saga_tables,
)
from hybridkit.dataservice._mongo._collection import HIDDEN
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.ids import new_id
from hybridkit.resources import AUDIT, Record, Resource
from hybridkit.sagas import SAGAS
from hybridkit.settings import MongoSettings, PostgresUrl, SecretUrl, ServiceSettings
from tests.helpers.horizons import until_readable
from tests.helpers.people import CANARY, ORDERS, OTHER, PEOPLE, SAGA_DATA, USERS, write_everywhere

pytestmark = pytest.mark.real_server

PERSON, SOMEBODY = new_id(), new_id()


class Settings(ServiceSettings):
    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


class Base(DeclarativeBase):
    pass


class UserTable(RecordColumns, Base):
    __tablename__ = "users"
    email: Mapped[str | None] = mapped_column(index=True)
    nickname: Mapped[str]
    city: Mapped[str]


class OrderTable(RecordColumns, Base):
    __tablename__ = "orders"
    user_id: Mapped[UUID] = mapped_column(index=True)
    address: Mapped[str | None]


class PersonEvents(StreamColumns, Base):
    __tablename__ = "person_events"


class Publisher:
    """Takes what the relay publishes."""

    async def publish_encoded(self, body: bytes, **_: Any) -> None:
        assert body

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncGenerator["Publisher"]:
        yield cls()


@asynccontextmanager
async def on_postgres(url: str) -> AsyncGenerator[PostgresDataClient]:
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    tables: dict[Resource[Any, Any, Any], type[RecordColumns]] = {USERS: UserTable, ORDERS: OrderTable}
    app = create_data_service(
        Settings,
        {**tables, **saga_tables()},
        streams={PEOPLE: PersonEvents},
        saga_data=SAGA_DATA,
        publisher=Publisher.open,
    )
    app.state.settings = Settings(database_url=SecretUrl(url))
    client = PostgresDataClient("http://data", service="admin_service", transport=AsgiTransport(app))
    async with app.router.lifespan_context(app), client:
        yield client


@asynccontextmanager
async def on_mongo(url: str) -> AsyncGenerator[PostgresDataClient]:
    collections: dict[Resource[Any, Any, Any], DocumentCollection] = {
        USERS: DocumentCollection(),
        ORDERS: DocumentCollection(),
    }
    app = create_data_service(
        MongoSettings, {**collections, **saga_collections()}, saga_data=SAGA_DATA, publisher=Publisher.open
    )
    app.state.settings = MongoSettings(service_name="db_mongo_service", database_url=SecretUrl(url))
    client = PostgresDataClient("http://data", service="admin_service", transport=AsgiTransport(app))
    async with app.router.lifespan_context(app), client:
        yield client


async def exported(client: PostgresDataClient) -> str:
    """Return the NDJSON exports of all that the service has."""
    lines: list[Record[Any]] = []
    for resource in (USERS, ORDERS, SAGAS, AUDIT):
        lines += [record async for record in client.find(resource).export()]
    return "".join(record.model_dump_json() for record in lines)


async def test_nothing_of_a_person_is_left_in_postgres(postgres_url: str) -> None:
    """No table and no export has the canary, once outbox and keys are past their time; others' data is all there."""
    async with on_postgres(postgres_url) as client:
        await write_everywhere(client, PERSON, CANARY)
        await write_everywhere(client, SOMEBODY, OTHER)
        await until_readable(postgres_url, "person_events")
        events = (await client.log(PEOPLE)).events
        before = [(each.stream_id, each.version, each.position) for each in events]
        others = (await exported(client) + str(events)).count(OTHER)
        counted = await client.forget("user_id", PERSON, dry_run=True)
        done = await client.forget("user_id", PERSON)
        assert done.rows == {
            "people": 3,
            "snapshots of people": 1,
            "users": 1,
            "orders": 2,
            "sagas": 2,
            "history of users": 2,
            "history of orders": 7,
        }
        assert {name: done.rows[name] for name in counted.rows} == counted.rows
        assert set((await client.forget("user_id", PERSON)).rows.values()) == {0}
        after = (await client.log(PEOPLE)).events
        assert [(each.stream_id, each.version, each.position) for each in after] == before
        assert {each.redacted_at is None for each in after if each.stream_id == str(PERSON)} == {False}
        found = await exported(client) + str(after)
        assert (found.count(CANARY), found.count(OTHER)) == (0, others)
        assert (await client.get(USERS, PERSON)).version == 2
    connection = await connect(
        postgres_url, timeout_seconds=10, command_seconds=30, application_name="the test"
    )
    try:
        await connection.execute("DELETE FROM hk_keys")
        tables = await connection.fetch(
            "SELECT oid::regclass::text AS name FROM pg_class WHERE relkind IN ('r', 'p', 'm')"
            " AND relnamespace = 'public'::regnamespace"
        )
        assert {"hk_audit", "hk_sagas", "hk_outbox", "hk_snapshots", "person_events", "users"} <= {
            row["name"] for row in tables
        }
        for row in tables:
            rows = await connection.fetch(f"SELECT line::text AS line FROM {row['name']} line")
            assert [each["line"] for each in rows if CANARY in each["line"]] == [], row["name"]
    finally:
        await connection.close()


async def test_nothing_of_a_person_is_left_in_mongodb(each_mongo_url: str) -> None:
    """The same on MongoDB, with transactions and without."""
    async with on_mongo(each_mongo_url) as client:
        await write_everywhere(client, PERSON, CANARY, streams=False)
        await write_everywhere(client, SOMEBODY, OTHER, streams=False)
        others = (await exported(client)).count(OTHER)
        counted = await client.forget("user_id", PERSON, dry_run=True)
        done = await client.forget("user_id", PERSON)
        assert (
            {name: done.rows[name] for name in counted.rows}
            == counted.rows
            == {"users": 1, "orders": 2, "sagas": 2}
        )
        assert set((await client.forget("user_id", PERSON)).rows.values()) == {0}
        found = await exported(client)
        assert (found.count(CANARY), found.count(OTHER)) == (0, others)
        assert (await client.get(USERS, PERSON)).version == 2
    async with AsyncMongoClient[dict[str, Any]](each_mongo_url) as mongo:
        database = mongo.get_default_database()
        for name in await database.list_collection_names():
            if name not in {"hk_keys", "hk_outbox"}:
                documents = await database[name].find().to_list()
                assert [each for each in documents if CANARY in str(_shown(each))] == [], name


def _shown(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document without the keys and events in it, which have their time."""
    return {name: value for name, value in document.items() if name != HIDDEN}


async def test_people_are_forgotten_while_their_sagas_move(postgres_url: str) -> None:
    """Erasures of several people at once, each twice, leave nothing of any."""
    async with on_postgres(postgres_url) as client:
        people = [new_id() for _ in range(4)]
        for person in people:
            await write_everywhere(client, person, CANARY)
        await asyncio.gather(*(client.forget("user_id", person) for person in people * 2))
        await until_readable(postgres_url, "person_events")
        events = (await client.log(PEOPLE)).events
        assert {str(person) for person in people} <= {each.stream_id for each in events}
        assert CANARY not in await exported(client) + str(events)
