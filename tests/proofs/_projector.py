"""The processes of the proof of projections: `python -m tests.proofs._projector service` and `… project`.

They read `DATABASE_URL` and `PORT`, or `POSTGRES_SERVICE_URL`.
"""

import asyncio
import os
import signal
import sys
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.clients import ClientPolicy, PostgresDataClient
from hybridkit.clients._projections._follower import Pauses
from hybridkit.clients._projections._runner import ProjectionRunner
from hybridkit.dataservice import RecordColumns, StreamColumns, create_data_service, projection_tables
from hybridkit.events import Event
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, ServiceSettings
from hybridkit.streams import Changes, Projection, Stream

PAUSES: Final = Pauses(shortest=0.005, longest=0.05, standby=0.1, away=0.05)


class Moved(Event, type="projection_proof.moved", key="account_id"):
    """Money came or went."""

    account_id: UUID
    amount: Decimal


class Account(BaseModel):
    """The state, of which the proof needs nothing."""


ACCOUNTS: Final = Stream("accounts", state=Account, key="account_id", publish=False)


@ACCOUNTS.apply(Moved)
def moved(account: Account, event: Moved) -> Account:
    """Leave the state as it is."""
    del event
    return account


class BalanceFields(BaseModel):
    """What is made of the events."""

    balance: Decimal = Decimal(0)
    movements: int = 0


class Balance(BalanceFields, Record):
    """A row of the projection."""


type Balances = Resource[Balance, BalanceFields, BalanceFields]

BALANCES: Final = Resource("balances", record=Balance, create=BalanceFields, update=BalanceFields)
BALANCES_V2: Final = Resource("balances_v2", record=Balance, create=BalanceFields, update=BalanceFields)


class Base(DeclarativeBase):
    """The service's tables."""


class AccountEvents(StreamColumns, Base):
    """The table of the stream."""

    __tablename__ = "account_events"


class BalanceTable(RecordColumns, Base):
    """The table of version 1."""

    __tablename__ = "balances"
    balance: Mapped[Decimal] = mapped_column(Numeric)
    movements: Mapped[int]


class BalanceTableV2(RecordColumns, Base):
    """The table of version 2."""

    __tablename__ = "balances_v2"
    balance: Mapped[Decimal] = mapped_column(Numeric)
    movements: Mapped[int]


class Settings(ServiceSettings):
    """The settings, read from the environment."""

    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


def application() -> FastAPI:
    """Return the data service."""
    tables: dict[Resource[Any, Any, Any], type[RecordColumns]] = {
        BALANCES: BalanceTable,
        BALANCES_V2: BalanceTableV2,
    }
    return create_data_service(Settings, {**tables, **projection_tables()}, streams={ACCOUNTS: AccountEvents})


def projection(version: int, into: Balances) -> Projection:
    """Return a version of the projection."""
    made = Projection("balances", source=ACCOUNTS, version=version)

    @made.on(Moved)
    def _(event: Moved, to: Changes) -> None:
        to.increment(into, event.account_id, balance=event.amount, movements=1)

    return made


async def project() -> None:
    """Run both versions until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    versions = [projection(1, BALANCES), projection(2, BALANCES_V2)]
    client = PostgresDataClient(
        os.environ["POSTGRES_SERVICE_URL"], service="worker_service", policy=ClientPolicy.worker()
    )
    async with client, ProjectionRunner(versions, client, pauses=PAUSES):
        await stopped.wait()


if __name__ == "__main__":
    if sys.argv[1] == "service":
        uvicorn.run(application(), port=int(os.environ["PORT"]), log_level="warning", access_log=False)
    else:
        asyncio.run(project())
