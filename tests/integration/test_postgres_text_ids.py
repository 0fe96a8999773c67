"""Ids that PostgreSQL gives back in another form than they came: batches know their records by them all the same."""

from typing import Any
from uuid import uuid4

import httpx
from pydantic import BaseModel
from sqlalchemy import CHAR, Uuid
from sqlalchemy.dialects.postgresql import CITEXT, INET
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings


class Settings(ServiceSettings):
    service_name: str = "text_ids"
    database_url: PostgresUrl


class NewSeat(BaseModel):
    row: int = 0


class Seat(NewSeat, Record[str]):
    pass


PADDED = Resource("padded", record=Seat, create=NewSeat, update=NewSeat)
FOLDED = Resource("folded", record=Seat, create=NewSeat, update=NewSeat)
HOSTS = Resource("hosts", record=Seat, create=NewSeat, update=NewSeat)
UPPER = Resource("upper", record=Seat, create=NewSeat, update=NewSeat)


class Base(DeclarativeBase):
    pass


class PaddedTable(RecordColumns, Base):
    __tablename__ = "padded"
    id: Mapped[str] = mapped_column(CHAR(5), primary_key=True)
    row: Mapped[int]


class UpperTable(RecordColumns, Base):
    __tablename__ = "upper"
    id: Mapped[str] = mapped_column(Uuid(as_uuid=False), primary_key=True)
    row: Mapped[int]


class FoldedTable(RecordColumns, Base):
    __tablename__ = "folded"
    id: Mapped[str] = mapped_column(CITEXT, primary_key=True)
    row: Mapped[int]


class HostTable(RecordColumns, Base):
    __tablename__ = "hosts"
    id: Mapped[str] = mapped_column(INET, primary_key=True)
    row: Mapped[int]


TABLES: dict[Any, Any] = {PADDED: PaddedTable, UPPER: UpperTable, FOLDED: FoldedTable, HOSTS: HostTable}


async def test_batches_know_their_records_by_ids_in_another_form(postgres_url: str) -> None:
    """Each write of several records answers with all of them, in their order."""
    async with migrating_connection(postgres_url) as connection:
        await connection.exec_driver_sql("CREATE EXTENSION citext")
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    app = create_data_service(Settings, TABLES)
    app.state.settings = Settings(database_url=SecretUrl(postgres_url))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://data.test") as http,
    ):
        for name, ids in (
            ("padded", ["a", "bb"]),
            ("hosts", ["10.0.0.1", "10.0.0.2"]),
            ("upper", [str(uuid4()).upper() for _ in range(2)]),
        ):
            shown = [own.lower() for own in ids]
            for kind in ("create", "update", "upsert"):
                items = [{"id": own, "data": {"row": 1}} for own in ids]
                key = {"idempotency-key": f'"{name} {kind}"'}
                answer = await http.post(f"/v1/{name}:batch_{kind}", json={"items": items}, headers=key)
                assert answer.status_code == 200, answer.text
                assert [item["id"] for item in answer.json()["items"]] == shown, kind
            found = await http.post(f"/v1/{name}:batch_get", json={"ids": ids})
            assert [item["id"] for item in found.json()["items"]] == shown
        for kind in ("create", "upsert", "update"):
            for ids in (["Ab", "cd"], ["cd", "aB"], ["Ab", "aB"])[: 1 if kind == "create" else 3]:
                items = [{"id": own, "data": {"row": number}} for number, own in enumerate(ids)]
                key = {"idempotency-key": f'"folded {kind} {ids}"'}
                answer = await http.post(f"/v1/folded:batch_{kind}", json={"items": items}, headers=key)
                assert answer.status_code == 200, answer.text
                told = [(item["id"], item["row"]) for item in answer.json()["items"]]
                assert told == [(own.replace("aB", "Ab"), number) for number, own in enumerate(ids)]
