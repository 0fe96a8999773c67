"""The rules of a claim's steps on a real MongoDB's wire, with and without transactions."""

from collections.abc import AsyncGenerator

import httpx
import pytest

from hybridkit.clients import MongoDataClient
from hybridkit.dataservice import DocumentCollection, DocumentIndex, create_data_service
from hybridkit.settings import MongoSettings, SecretUrl
from tests.helpers.step_rules import ITEMS, Bench, StepRules


@pytest.fixture
async def bench(each_mongo_url: str) -> AsyncGenerator[Bench]:
    unique_name = DocumentCollection(indexes=(DocumentIndex("name", unique=True),))
    app = create_data_service(MongoSettings, {ITEMS: unique_name})
    app.state.settings = MongoSettings(
        service_name="db_mongo_service", database_url=SecretUrl(each_mongo_url)
    )
    async with (
        app.router.lifespan_context(app),
        MongoDataClient("http://data", service="api", transport=httpx.ASGITransport(app)) as client,
    ):
        yield Bench(client, ITEMS)


class TestStepRules(StepRules):
    """The rules."""
