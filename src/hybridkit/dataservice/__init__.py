"""The server side of the data contract: from tables to routes, migrations, idempotency keys and an outbox.

```python
class Base(DeclarativeBase):
    pass

class UserTable(RecordColumns, Base):
    __tablename__ = "users"
    email: Mapped[str] = mapped_column(unique=True)
    is_active: Mapped[bool]

app = create_data_service(PostgresSettings, {USERS: UserTable}, migrations="migrations")

def main() -> None:
    run_api(app)
```

On MongoDB a resource is stored in a collection instead:

```python
app = create_data_service(MongoSettings, {USER_STATS: DocumentCollection(indexes=(DocumentIndex("visits"),))})
```

Names that need SQLAlchemy or PyMongo are loaded when they are used, so that a service does without the other one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridkit.errors import MissingExtraError

try:
    from hybridkit.dataservice._http._callers import Grant
    from hybridkit.dataservice._http._own_calls import CallContext, Database, DatabaseReader
    from hybridkit.dataservice._open_outbox import open_outbox
    from hybridkit.dataservice._outbox._protocol import OutboxEntries, OutboxEntry
    from hybridkit.dataservice._outbox._relay import EventSink, Relay
    from hybridkit.dataservice._sagas import saga_collections, saga_tables
    from hybridkit.dataservice._service import create_data_service
except ImportError as error:
    # Either extra brings the web framework that both kinds of data service need.
    if not isinstance(error, MissingExtraError) and error.name not in {"fastapi", "starlette", "uvicorn"}:
        raise
    raise MissingExtraError(__name__, extra="postgres", or_extra="mongo") from None

if TYPE_CHECKING:
    from hybridkit.dataservice._mongo._collection import DocumentCollection as DocumentCollection
    from hybridkit.dataservice._mongo._collection import DocumentIndex as DocumentIndex
    from hybridkit.dataservice._postgres._columns import LoginSessionColumns as LoginSessionColumns
    from hybridkit.dataservice._postgres._columns import RecordColumns as RecordColumns
    from hybridkit.dataservice._postgres._columns import SoftDeleteColumns as SoftDeleteColumns
    from hybridkit.dataservice._postgres._schema import migrate as migrate
    from hybridkit.dataservice._postgres._schema import write_revision as write_revision
    from hybridkit.dataservice._postgres._streams._columns import StreamColumns as StreamColumns
    from hybridkit.dataservice._postgres._streams._projections import projection_tables as projection_tables

__all__ = [
    "CallContext",
    "Database",
    "DatabaseReader",
    "DocumentCollection",
    "DocumentIndex",
    "EventSink",
    "Grant",
    "LoginSessionColumns",
    "OutboxEntries",
    "OutboxEntry",
    "RecordColumns",
    "Relay",
    "SoftDeleteColumns",
    "StreamColumns",
    "create_data_service",
    "migrate",
    "open_outbox",
    "projection_tables",
    "saga_collections",
    "saga_tables",
    "write_revision",
]

_HOMES = {
    "DocumentCollection": ("_mongo._collection", "mongo"),
    "DocumentIndex": ("_mongo._collection", "mongo"),
    "LoginSessionColumns": ("_postgres._columns", "postgres"),
    "RecordColumns": ("_postgres._columns", "postgres"),
    "SoftDeleteColumns": ("_postgres._columns", "postgres"),
    "StreamColumns": ("_postgres._streams._columns", "postgres"),
    "migrate": ("_postgres._schema", "postgres"),
    "projection_tables": ("_postgres._streams._projections", "postgres"),
    "write_revision": ("_postgres._schema", "postgres"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, extra = _HOMES[name]
    try:
        return getattr(import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError:
        raise MissingExtraError(f"{__name__}.{name}", extra=extra) from None
