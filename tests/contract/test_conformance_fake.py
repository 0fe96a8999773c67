"""The fake data service keeps the contract, with transactions and without."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hybridkit.dataservice import CallContext
from hybridkit.testing import FakeDataService
from hybridkit.testing.conformance import (
    CONFORMANCE_RESOURCES,
    COUNTERS,
    PLACES,
    SLOW,
    THINGS,
    Capability,
    DataServiceConformance,
    HeadersConformance,
    ServiceUnderTest,
    Slow,
    TransactionsConformance,
)

LACKS: dict[Capability, str] = {
    "pipelines": "it is no MongoDB",
}


async def slow(body: Slow, _: CallContext[object]) -> Slow:
    await asyncio.sleep(body.seconds)
    return body


class TestFake(DataServiceConformance):
    """In this process."""

    @pytest.fixture
    async def service(self) -> AsyncIterator[ServiceUnderTest]:
        fake = FakeDataService(
            CONFORMANCE_RESOURCES,
            unique={THINGS: ["code"]},
            references={THINGS: {"place_id": PLACES}},
            calls={SLOW: slow},
            streams=[COUNTERS],
        )
        async with ServiceUnderTest("http://data.test", transport=fake.transport, lacks=LACKS) as service:
            yield service


class TestFakeWithoutTransactions(TransactionsConformance, HeadersConformance):
    """As a MongoDB that has none, over a socket."""

    @pytest.fixture
    async def service(self) -> AsyncIterator[ServiceUnderTest]:
        fake = FakeDataService(CONFORMANCE_RESOURCES, unique={THINGS: ["code"]}, has_transactions=False)
        lacks: dict[Capability, str] = {**LACKS, "transactions": "the fake was told to have none"}
        async with fake.serve() as url, ServiceUnderTest(url, lacks=lacks) as service:
            yield service
