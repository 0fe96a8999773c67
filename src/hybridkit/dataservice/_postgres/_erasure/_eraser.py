"""Erase a person's data in batches, each in a transaction of its own."""

from collections.abc import Mapping

from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._erasure._events import erase_events
from hybridkit.dataservice._postgres._erasure._records import erase_records
from hybridkit.dataservice._postgres._erasure._sagas import erase_sagas
from hybridkit.dataservice._postgres._streams._table import StreamTable
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._store._erasure import Erased, ErasureStep, RecordStep, StreamStep
from hybridkit.sagas import SAGAS


class Eraser:
    """The erasures of one database.

    Args:
        pool: the connections.
        tables: the tables by their resource's name.
        streams: the tables of streams by the stream's name.
    """

    def __init__(
        self, pool: Pool, tables: Mapping[str, ResourceTable], streams: Mapping[str, StreamTable]
    ) -> None:
        self._pool = pool
        self._tables = tables
        self._streams = streams

    def __repr__(self) -> str:
        return f"Eraser({sorted((*self._tables, *self._streams))})"

    async def erase(self, step: ErasureStep, person: str, *, after: str, dry_run: bool) -> Erased:
        """Erase one batch of a step, or count its rows."""
        async with self._pool.session(read_only=dry_run) as session:
            match step:
                case RecordStep():
                    table = self._tables[step.resource.name]
                    return await erase_records(session, table, step, person, after=after, dry_run=dry_run)
                case StreamStep():
                    stream = self._streams[step.stream.name]
                    return await erase_events(session, stream, step, person, after=after, dry_run=dry_run)
                case _:
                    saga = self._tables[SAGAS.name]
                    return await erase_sagas(session, saga, step, person, after=after, dry_run=dry_run)
