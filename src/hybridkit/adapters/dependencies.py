"""The types that handlers ask for, under the same names in every kind of process.

```python
async def register(body: NewUser, postgres: Postgres) -> User: ...              # a FastAPI route
async def start(message: Message, postgres: Postgres) -> None: ...              # an Aiogram handler
async def on_created(event: UserCreated, mongo: Mongo) -> None: ...             # a consumer's handler
```

FastAPI injects parameters marked with `Depends`, so the aliases carry one where FastAPI is installed. The other kinds
of process ignore it, and accept the bare class as well. `Provided[X]` is the alias of everything else that has a
provider: the settings, and what the application's own `lifespan=` yields.

```python
async def quote(settings: Provided[Settings], mailer: Provided[Mailer]) -> Quote: ...
```

In the tests of an API `app.dependency_overrides` takes the type as the key: `{Mailer: lambda: recorded}`.
"""

from typing import TYPE_CHECKING, Annotated, Any

from hybridkit.adapters.localization import Translator
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.context import RequestContext
from hybridkit.coordination import Redis as RedisClient
from hybridkit.messaging import RobustPublisher

__all__ = ["Context", "Mongo", "Postgres", "Provided", "Publisher", "Redis", "Texts"]


def _marker(type_: Any) -> Any:
    """Return a `Depends` for what the running application has of a type, or None without FastAPI."""
    try:
        from fastapi import Depends  # noqa: PLC0415  # optional, and its absence is no error here

        from hybridkit.adapters._provided import ProvidedByType  # noqa: PLC0415
    except ImportError:
        return None
    return Depends(ProvidedByType(type_))


if TYPE_CHECKING:
    type Provided[T] = T
else:

    class Provided:
        """A parameter that is filled with what the process provides of a type, in every kind of process.

        That is the settings (by their class or a base class of it), a resource such as `IdempotencyGuard`, and what the
        application's own `lifespan=` yields by its type: `Provided[Mailer]`. FastAPI would read a bare `Mailer` from
        the request's body, or refuse it; `create_app` does not start with one that would be read from there.
        """

        def __class_getitem__(cls, type_: Any) -> Any:
            """Return the annotation of a parameter of this type."""
            return Annotated[type_, _marker(type_)]


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
