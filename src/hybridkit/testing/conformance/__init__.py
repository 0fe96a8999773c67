"""The HTTP contract as tests, which run against any data service.

```python
class TestMyService(DataServiceConformance):
    @pytest.fixture
    async def service(self, my_service_url: str) -> AsyncIterator[ServiceUnderTest]:
        async with ServiceUnderTest(my_service_url, lacks={"transactions": "this MongoDB has none"}) as service:
            yield service
```

The service serves `CONFORMANCE_RESOURCES`, the streams `COUNTERS` where it keeps streams, and the call `SLOW` where
something can keep its database busy. It may have been used before, and by other tests at the same time: each test looks
at its own records only. `pytest-asyncio` runs the tests.
"""

from hybridkit.errors import MissingExtraError

try:
    import pytest
except ModuleNotFoundError:
    raise MissingExtraError(__name__, extra="testing") from None

from hybridkit.testing.conformance._aggregates import AggregatesConformance
from hybridkit.testing.conformance._audit import AuditConformance
from hybridkit.testing.conformance._filters import FiltersConformance
from hybridkit.testing.conformance._headers import HeadersConformance
from hybridkit.testing.conformance._keys import KeysConformance
from hybridkit.testing.conformance._pages import PagesConformance
from hybridkit.testing.conformance._problems import ProblemsConformance
from hybridkit.testing.conformance._records import RecordsConformance
from hybridkit.testing.conformance._resources import (
    CONFORMANCE_RESOURCES,
    LEDGERS,
    PLACES,
    SLOW,
    THINGS,
    Slow,
)
from hybridkit.testing.conformance._service import Answer, Capability, ServiceUnderTest
from hybridkit.testing.conformance._streams import COUNTERS, StreamsConformance
from hybridkit.testing.conformance._transactions import TransactionsConformance
from hybridkit.testing.conformance._values import ValuesConformance

__all__ = [
    "CONFORMANCE_RESOURCES",
    "COUNTERS",
    "LEDGERS",
    "PLACES",
    "SLOW",
    "THINGS",
    "AggregatesConformance",
    "Answer",
    "AuditConformance",
    "Capability",
    "DataServiceConformance",
    "FiltersConformance",
    "HeadersConformance",
    "KeysConformance",
    "PagesConformance",
    "ProblemsConformance",
    "RecordsConformance",
    "ServiceUnderTest",
    "Slow",
    "StreamsConformance",
    "TransactionsConformance",
    "ValuesConformance",
]


@pytest.mark.asyncio
class DataServiceConformance(
    RecordsConformance,
    ValuesConformance,
    FiltersConformance,
    PagesConformance,
    KeysConformance,
    TransactionsConformance,
    StreamsConformance,
    AggregatesConformance,
    AuditConformance,
    HeadersConformance,
    ProblemsConformance,
):
    """All tests of the contract. A subclass, whose name begins with `Test`, has a fixture `service`."""
