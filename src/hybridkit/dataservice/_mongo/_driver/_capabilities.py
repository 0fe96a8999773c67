"""Capabilities of a server, found out by trying: a version number or a name proves nothing.

Several servers speak MongoDB's protocol. A `mongod` that stands alone has no transactions, and FerretDB takes the
commands of one and writes at once: only what is left after an abort tells them apart.
"""

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError, InvalidOperation, OperationFailure

from hybridkit.codec import now
from hybridkit.dataservice._mongo._driver._sessions import begin
from hybridkit.errors import TransactionsUnavailableError, UnavailableError

_LEFTOVERS_EXPIRE: Final = timedelta(minutes=1)
_UNKNOWN_THERE: Final = frozenset({20, 59, 72, 115, 238, 263})
"""IllegalOperation, CommandNotFound, InvalidOptions, CommandNotSupported, NotImplemented,
OperationNotSupportedInTransaction: the codes of a server that doesn't know transactions, or their snapshots."""
_UNKNOWN_TO_DRIVER: Final = (ConfigurationError, InvalidOperation)

type StoredDocument = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The capabilities of a server beyond single documents.

    Attributes:
        server: its name and version: `MongoDB 8.0.4`, `FerretDB v2.7.0`.
        transactions: whether several documents change in one; otherwise a write has exactly one record.
    """

    server: str
    transactions: bool

    def require_transactions(self, what: str) -> None:
        """Refuse work that needs transactions on a server without them.

        Raises:
            TransactionsUnavailableError: the server has no transactions.
        """
        if not self.transactions:
            raise TransactionsUnavailableError(
                f"{what} needs transactions, which this database ({self.server}) doesn't have; write one record"
                " at a time"
            )


async def probe(database: AsyncDatabase[StoredDocument], collection: str) -> Capabilities:
    """Ask the server for its name, and try a transaction as writes begin it.

    Args:
        database: to try it in.
        collection: an existing one, from which documents past their `expires_at` are deleted.

    Raises:
        UnavailableError: the server refuses the attempt for now; whether it has transactions isn't known.
    """
    about = await database.command("buildInfo")
    ferret = about.get("ferretdb")
    server = f"FerretDB {ferret['version']}" if ferret else f"MongoDB {about.get('version', '?')}"
    return Capabilities(server=server, transactions=await _has_transactions(database, collection))


async def _has_transactions(database: AsyncDatabase[StoredDocument], collection: str) -> bool:
    try:
        async with database.client.start_session() as session:
            return await _takes_back(database, collection, session) and await _commits(
                database, collection, session
            )
    except _UNKNOWN_TO_DRIVER:
        return False
    except OperationFailure as error:
        if error.code in _UNKNOWN_THERE:
            return False
        raise UnavailableError(
            f"the database can't be asked yet whether it has transactions (code {error.code})",
            retry_after_seconds=1.0,
        ) from error


async def _takes_back(
    database: AsyncDatabase[StoredDocument], collection: str, session: AsyncClientSession
) -> bool:
    """Return whether nothing is left of a transaction that was aborted."""
    documents = database[collection]
    trace = {"_id": f"probe {secrets.token_hex(8)}", "expires_at": now() + _LEFTOVERS_EXPIRE}
    await begin(session)
    await documents.insert_one(trace, session=session)
    await session.abort_transaction()
    left = await documents.find_one_and_delete({"_id": trace["_id"]})
    return left is None


async def _commits(
    database: AsyncDatabase[StoredDocument], collection: str, session: AsyncClientSession
) -> bool:
    trace = {"_id": f"probe {secrets.token_hex(8)}", "expires_at": now() + _LEFTOVERS_EXPIRE}
    documents = database[collection]
    await begin(session)
    await documents.find_one({"_id": trace["_id"]}, session=session)
    await documents.insert_one(trace, session=session)
    await session.commit_transaction()
    await documents.delete_one({"_id": trace["_id"]})
    return True
