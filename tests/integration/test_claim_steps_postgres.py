"""The rules of a claim's steps on a real PostgreSQL."""

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from hybridkit.clients import PostgresDataClient
from tests.helpers.step_rules import Bench, StepRules


@pytest.fixture
async def bench(service: Any) -> AsyncGenerator[Bench]:
    transport = httpx.ASGITransport(service.app)
    async with PostgresDataClient("http://data", service="api_service", transport=transport) as client:
        yield Bench(client, service.items, emits=True)


class TestStepRules(StepRules):
    """The rules."""
