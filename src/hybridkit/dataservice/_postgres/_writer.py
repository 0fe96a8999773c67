"""Write to PostgreSQL: operations, their idempotency key and the events they cause, in one transaction."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from sqlalchemy import select, text

from hybridkit.contract import Emission
from hybridkit.dataservice._postgres._driver._errors import OutdatedError
from hybridkit.dataservice._postgres._driver._pool import Pool, Session
from hybridkit.dataservice._postgres._keys import Recorded, claim_key, look_up_key, record_key
from hybridkit.dataservice._postgres._operations import apply, apply_carefully
from hybridkit.dataservice._postgres._outbox import add_emissions, cancel_emissions
from hybridkit.dataservice._postgres._refusals import RefusedError, UnnamedError, explained
from hybridkit.dataservice._postgres._single_statement import SingleStatement
from hybridkit.dataservice._postgres._streams._append_statement import AppendStatement
from hybridkit.dataservice._postgres._streams._appending import append_all
from hybridkit.dataservice._postgres._streams._table import StreamTable
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._store._in_flight import PATIENCE_SECONDS, InFlight
from hybridkit.dataservice._store._kept_outcomes import (
    Reference,
    decode_outcome,
    kept_versions,
    result_of,
)
from hybridkit.dataservice._store._keys import count, replayed
from hybridkit.dataservice._store._operations import Document, Outcome, Write
from hybridkit.errors import (
    ConflictError,
    InProgressError,
    InvalidRequestError,
    KeyReusedError,
    RejectedError,
)
from hybridkit.retry import Retry

POLL_SECONDS: Final = 0.04
"""The longest pause before the next look at a key that another process is working on."""
CONFLICT_RETRY: Final = Retry.exponential(first_seconds=0.04, cap_seconds=0.16, attempts=4)
"""How a transaction is run again that another one has beaten."""


class PostgresWriter:
    """The writes of the contract to one PostgreSQL database, once per caller and key.

    Args:
        pool: the connections for requests.
        tables: the tables by their resource's name.
        streams: the tables of streams by the stream's name.
        emitted: called when a committed write has added to the outbox.
    """

    def __init__(
        self,
        pool: Pool,
        tables: Mapping[str, ResourceTable],
        *,
        streams: Mapping[str, StreamTable],
        emitted: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._tables = tables
        self._emitted = emitted
        self._streams = streams
        self._single_statement = SingleStatement(pool, tables)
        self._append_statement = AppendStatement(pool, streams)
        self._in_flight = InFlight()

    def __repr__(self) -> str:
        return f"PostgresWriter({sorted(self._tables)}, {self._in_flight!r})"

    async def write(self, write: Write) -> Outcome:
        """Do all of a write once per caller and key; again, at most three times, if another transaction won.

        A dry run has nothing to do with keys: it is not recorded, and no recorded outcome replaces it.
        """
        if write.dry_run:
            return await self._insist(write)

        try:
            return await self._in_flight.run(write, lambda: self._write(write))
        except InProgressError:
            count("in_progress")
            raise

    async def _write(self, write: Write) -> Outcome:
        done: Outcome | None = None
        for statement in (self._single_statement, self._append_statement):
            if statement.takes(write):
                done = await self._write_by_statement(statement, write)
        if done is None:
            done = await self._insist(write)
        if not done.replayed:
            count("acquired")
        return done

    async def _write_by_statement(
        self, statement: SingleStatement | AppendStatement, write: Write
    ) -> Outcome | None:
        """Return the outcome of a write by one statement; None if it takes a transaction to find out."""
        try:
            done = await statement.write(write)
        except (UnnamedError, InvalidRequestError):
            return None
        if isinstance(done, tuple):
            return await self._replay(write, done)
        if done is not None and (write.emit or any(append.stream.publish for append in write.appends)):
            self._emitted()
        return done

    async def _insist(self, write: Write) -> Outcome:
        give_up = time.monotonic() + PATIENCE_SECONDS
        pauses: Iterator[float] | None = None
        careful = False
        while True:
            try:
                return await self._write_once(write, careful=careful)
            except InProgressError:
                if time.monotonic() >= give_up:
                    raise
                pause = POLL_SECONDS * random.random()  # noqa: S311 - spreads load # nosec B311
            except (ConflictError, OutdatedError):
                pauses = pauses or CONFLICT_RETRY.pauses()
                if (pause := next(pauses, -1.0)) < 0:
                    raise
            except UnnamedError:
                careful, pause = True, 0.0
            except KeyReusedError:
                raise
            except (RejectedError, RefusedError) as error:
                # What looks like a refusal may be the work of the key's former holder, which the snapshot missed.
                recorded = None if write.dry_run else await look_up_key(self._pool, write)
                if recorded is None:
                    raise await self._explained(write, error) from error.__cause__
                return await self._replay(write, recorded)
            # Without a connection, so that a write which waits can't block the one that it waits for.
            await asyncio.sleep(pause)

    async def _explained(self, write: Write, error: RejectedError | RefusedError) -> RejectedError:
        """Return the refusal with pointers into the request."""
        if isinstance(error, RejectedError):
            if len(write.operations) != 1 or error.__cause__ is None:
                return error
            error = RefusedError(write.operations[0], error)  # by the commit: a deferred constraint
        return await explained(self._pool, self._tables, error)

    async def _write_once(self, write: Write, *, careful: bool) -> Outcome:
        recorded: Recorded | None = None
        outcome = Outcome(())
        emissions: Sequence[Emission] = ()
        with suppress(_TakenBackError):
            async with self._pool.session(isolation=write.isolation) as session:
                if not write.dry_run:
                    recorded = await claim_key(session, write)
                if recorded is None:
                    outcome, emissions = await self._carry_out(session, write, careful=careful)
                    await self._settle(session, write, outcome)
        if recorded is not None:
            return await self._replay(write, recorded)
        if emissions and not write.dry_run:
            self._emitted()
        return outcome

    async def _carry_out(
        self, session: Session, write: Write, *, careful: bool
    ) -> tuple[Outcome, Sequence[Emission]]:
        if write.call is None:
            appended = await append_all(session, self._streams, write.appends, caller=write.caller)
            work = apply_carefully if careful else apply
            results = tuple(await work(session, self._tables, write.operations))
            outcome = Outcome(results, versions=appended.versions)
            emissions = (*write.emit, *appended.emissions)
        else:
            answer = await session.run(write.call)
            outcome = Outcome((), answer=answer.body)
            emissions = (*write.emit, *answer.emit)
        await add_emissions(session, emissions, service=write.caller)
        await cancel_emissions(session, write.cancel, service=write.caller)
        return outcome, emissions

    async def _settle(self, session: Session, write: Write, outcome: Outcome) -> None:
        if write.dry_run:
            await session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))  # those that the commit would check
            raise _TakenBackError
        await record_key(session, write, outcome)

    async def _replay(self, write: Write, recorded: Recorded) -> Outcome:
        fingerprint, stored = recorded
        kept = decode_outcome(stored, write)
        outcome = kept if isinstance(kept, Outcome) else await self._read_again(kept, kept_versions(stored))
        return replayed(write, fingerprint, outcome)

    async def _read_again(self, references: Sequence[Reference | None], versions: tuple[int, ...]) -> Outcome:
        found: dict[tuple[str, str], Document] = {}
        async with self._pool.session() as session:
            for name in {reference.resource for reference in references if reference}:
                table = self._tables[name]
                ids = [
                    table.resource.kept_id(reference.id)
                    for reference in references
                    if reference and reference.resource == name
                ]
                rows = await session.execute(select(*table.all).where(table["id"].in_(ids), table.live))
                found |= {(name, str(record["id"])): record for record in map(table.document, rows)}
        results = [
            result_of(reference, reference and found.get((reference.resource, reference.id)))
            for reference in references
        ]
        return Outcome(tuple(results), replayed=True, reread=True, versions=versions)


class _TakenBackError(Exception):
    """Ends a dry run: an error that leaves a session's block undoes the transaction."""
