"""MongoDB's data service keeps the contract: the suite that users run, on real servers and over real sockets.

One server has no transactions and the other has them.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from pymongo import AsyncMongoClient

from hybridkit.dataservice import DocumentCollection, DocumentIndex, create_data_service
from hybridkit.dataservice._mongo._driver._capabilities import probe
from hybridkit.resources import Resource
from hybridkit.settings import MongoSettings, SecretUrl
from hybridkit.testing import _isolation, plugin
from hybridkit.testing.conformance import (
    LEDGERS,
    PLACES,
    THINGS,
    Capability,
    DataServiceConformance,
    ServiceUnderTest,
)

pytestmark = pytest.mark.real_server

COLLECTIONS: dict[Resource[Any, Any, Any], DocumentCollection] = {
    THINGS: DocumentCollection(indexes=(DocumentIndex("code", unique=True), DocumentIndex("tag"))),
    PLACES: DocumentCollection(),
    LEDGERS: DocumentCollection(),
}


class Publisher:
    """Takes what the relay publishes."""

    async def publish_encoded(self, body: bytes, **_: Any) -> None:
        assert body

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncGenerator["Publisher"]:
        yield cls()


async def _has_transactions(url: str) -> bool:
    async with AsyncMongoClient[dict[str, Any]](url) as client:
        database = client.get_default_database()
        await database.create_collection("probed")
        return (await probe(database, "probed")).transactions


@pytest.fixture(scope="module", params=["mongo", "mongo_transactions"])
def mongo_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database for all tests: each looks at its own records only."""
    with _isolation.mongo_database(plugin._find(request, request.param)) as url:
        yield url


@pytest.fixture(scope="module")
def lacks(mongo_database: str) -> dict[Capability, str]:
    """What this server can't do."""
    found: dict[Capability, str] = {
        "foreign_keys": "MongoDB has none",
        "streams": "MongoDB keeps none",
        "slow_call": "nothing that this service allows keeps MongoDB busy",
    }
    if not asyncio.run(_has_transactions(mongo_database)):
        found["transactions"] = "this server has no transactions; probed at the start"
    return found


@pytest.fixture(scope="module")
def base_url(
    mongo_database: str, serve_app: Callable[[FastAPI], AbstractContextManager[str]]
) -> Iterator[str]:
    """Where the service is."""
    app = create_data_service(MongoSettings, COLLECTIONS, publisher=Publisher.open)
    app.state.settings = MongoSettings(
        service_name="db_mongo_service", database_url=SecretUrl(mongo_database), start_budget_seconds=30
    )
    with serve_app(app) as base_url:
        yield base_url


class TestMongo(DataServiceConformance):
    """On MongoDB, or what speaks its protocol."""

    @pytest.fixture
    async def service(self, base_url: str, lacks: dict[Capability, str]) -> AsyncIterator[ServiceUnderTest]:
        async with ServiceUnderTest(base_url, lacks=lacks) as service:
            yield service


@pytest.mark.usefixtures("unmeasured_test")
def test_every_answer_is_documented(
    base_url: str, explore: Callable[[str], list[str]], lacks: dict[Capability, str]
) -> None:
    """Whatever is sent: no failure, and no status, content type, header or body that OpenAPI doesn't tell."""
    if "transactions" not in lacks and "HYBRIDKIT_SCHEMATHESIS_EXAMPLES" not in os.environ:
        pytest.skip("`make schemathesis` has the minutes that this takes on a server with transactions")
    assert explore(f"{base_url}/openapi.json") == []
