"""Clients of services over HTTP: data clients, typed by the resources of a data service, and `ServiceClient`.

```python
async with PostgresDataClient("http://127.0.0.1:8001", service="api_service") as postgres:
    user = await postgres.get(USERS, user_id)
    async for order in postgres.find(ORDERS).where(ORDERS["user_id"] == user.id):
        ...
    async with postgres.transaction() as tx:
        tx.update(USERS, user, UserChanges(is_active=False))
        tx.emit(UserDeactivated(user_id=user.id))
```

Every call ends within its deadline with a result or with an error from `hybridkit.errors`; every write carries an
idempotency key, so that a repeated one changes nothing.
"""

from hybridkit.clients._answers import Page
from hybridkit.clients._client import MongoDataClient, PostgresDataClient
from hybridkit.clients._find import Find
from hybridkit.clients._modify import Change
from hybridkit.clients._pipeline._policy import ClientPolicy
from hybridkit.clients._records import RecordId
from hybridkit.clients._service_client import ReadOptions, ServiceClient, WriteOptions
from hybridkit.clients._transaction import DataTransaction, Handle
from hybridkit.clients._transports._asgi import AsgiTransport
from hybridkit.clients._transports._base import Request, Response, StreamedResponse, Transport
from hybridkit.clients._transports._httpx import AnyTransport

__all__ = [
    "AnyTransport",
    "AsgiTransport",
    "Change",
    "ClientPolicy",
    "DataTransaction",
    "Find",
    "Handle",
    "MongoDataClient",
    "Page",
    "PostgresDataClient",
    "ReadOptions",
    "RecordId",
    "Request",
    "Response",
    "ServiceClient",
    "StreamedResponse",
    "Transport",
    "WriteOptions",
]
