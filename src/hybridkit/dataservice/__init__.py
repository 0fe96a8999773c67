"""The server side of the data contract: tables in, routes, migrations, idempotency and an outbox out.

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

Names that need SQLAlchemy are loaded when they are used, so that a service on MongoDB does without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridkit.dataservice._relay import Publisher, Relay
from hybridkit.dataservice._service import create_data_service
from hybridkit.errors import MissingExtraError

if TYPE_CHECKING:
    from hybridkit.dataservice._postgres_columns import RecordColumns as RecordColumns
    from hybridkit.dataservice._postgres_migrations import migrate as migrate
    from hybridkit.dataservice._postgres_migrations import write_revision as write_revision

__all__ = [
    "Publisher",
    "RecordColumns",
    "Relay",
    "create_data_service",
    "migrate",
    "write_revision",
]

_ON_POSTGRES = {
    "RecordColumns": "_postgres_columns",
    "migrate": "_postgres_migrations",
    "write_revision": "_postgres_migrations",
}


def __getattr__(name: str) -> Any:
    home = _ON_POSTGRES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError:
        raise MissingExtraError(f"{__name__}.{name}", extra="postgres") from None
