"""The place of sagas in a data service: the table in PostgreSQL, or the collection in MongoDB."""

from typing import TYPE_CHECKING

from hybridkit.sagas import SAGAS

if TYPE_CHECKING:
    from hybridkit.dataservice._mongo._collection import DocumentCollection
    from hybridkit.dataservice._postgres._columns import RecordColumns
    from hybridkit.resources._resource import AnyResource


def saga_tables() -> "dict[AnyResource, type[RecordColumns]]":
    """Return the resource of sagas with its table, for `create_data_service(PostgresSettings, {..., **saga_tables()})`.

    hybridkit's own migrations make the table, so a service needs no revision for it.
    """
    from hybridkit.dataservice._postgres._columns import SagaTable  # noqa: PLC0415 - an extra of its own

    return {SAGAS: SagaTable}


def saga_collections() -> "dict[AnyResource, DocumentCollection]":
    """Return the resource of sagas with its collection, for `create_data_service(MongoSettings, {...})`."""
    from hybridkit.dataservice._mongo._collection import (  # noqa: PLC0415 - an extra of its own
        SAGA_COLLECTION,
        DocumentCollection,
        DocumentIndex,
    )

    indexes = (DocumentIndex("saga", "status", "state"), DocumentIndex("wake_at"))
    return {SAGAS: DocumentCollection(name=SAGA_COLLECTION, indexes=indexes)}
