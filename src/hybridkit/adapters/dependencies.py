"""The types that handlers ask for, under the same names in every kind of process.

```python
async def register(body: NewUser, postgres: Postgres) -> User: ...              # a FastAPI route
async def start(message: Message, postgres: Postgres) -> None: ...              # an Aiogram handler
async def on_created(event: UserCreated, mongo: Mongo) -> None: ...             # a consumer's handler
```

FastAPI injects parameters marked with `Depends`, so the aliases carry one where FastAPI is installed. The other kinds
of process ignore it, and accept the bare class as well.
"""

from typing import TYPE_CHECKING, Annotated, Any

from hybridkit.adapters.localization import Translator, translator
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.context import RequestContext, current
from hybridkit.coordination import Redis as RedisClient
from hybridkit.errors import DeclarationError
from hybridkit.messaging import RobustPublisher

if TYPE_CHECKING:
    from hybridkit.lifespan import ServiceResources

__all__ = ["Context", "Mongo", "Postgres", "Publisher", "Redis", "Texts"]


def _marker(type_: type) -> Any:
    """Return a `Depends` for what the running application has of a type, or None without FastAPI."""
    try:
        from fastapi import Depends  # noqa: PLC0415  # optional, and its absence is no error here
        from starlette.requests import HTTPConnection  # noqa: PLC0415
    except ImportError:
        return None

    async def provide(connection: HTTPConnection) -> object:  # a plain function would run in a thread
        if type_ is RequestContext:
            return current()
        if type_ is Translator:
            return translator()
        resources: ServiceResources = connection.app.state.resources
        if type_ not in resources.providers:
            raise DeclarationError(
                f"nothing provides {type_.__name__} here: the settings class of the application has to name it"
                " (ApiSettings has everything), and outside of development a data service's URL has to be set"
                " (POSTGRES_SERVICE_URL, MONGO_SERVICE_URL)"
            )
        return resources.providers[type_]

    return Depends(provide)


Postgres = Annotated[PostgresDataClient, _marker(PostgresDataClient)]
"""The client of the PostgreSQL data service."""

Mongo = Annotated[MongoDataClient, _marker(MongoDataClient)]
"""The client of the MongoDB data service."""

Publisher = Annotated[RobustPublisher, _marker(RobustPublisher)]
"""The publisher of events and commands."""

Redis = Annotated[RedisClient, _marker(RedisClient)]
"""The connection to Redis that holds claims, locks and sessions; see `hybridkit.coordination`."""

Context = Annotated[RequestContext, _marker(RequestContext)]
"""The request id, user and deadline of the current request, update or message."""

Texts = Annotated[Translator, _marker(Translator)]
"""The texts in the language of the current request or update; see `hybridkit.adapters.localization`."""
