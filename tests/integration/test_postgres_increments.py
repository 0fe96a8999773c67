"""A number that its column keeps in another form: PostgreSQL can't add to it."""

from typing import Any

import httpx
from pydantic import BaseModel
from sqlalchemy import Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings


class Settings(ServiceSettings):
    service_name: str = "increments"
    database_url: PostgresUrl


class NewTally(BaseModel):
    count: int = 0


class Tally(NewTally, Record):
    pass


TALLIES = Resource("tallies", record=Tally, create=NewTally, update=NewTally)


class InWords(TypeDecorator[int]):
    """An integer as a text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Any) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Any) -> int | None:
        return None if value is None else int(value)


class Base(DeclarativeBase):
    pass


class TallyTable(RecordColumns, Base):
    __tablename__ = "tallies"
    count: Mapped[int] = mapped_column(InWords)


async def test_a_number_that_is_kept_as_a_text_is_not_incremented(postgres_url: str) -> None:
    """The caller is told so, with the place in its request, and the record stays as it is."""
    async with migrating_connection(postgres_url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    app = create_data_service(Settings, {TALLIES: TallyTable})
    app.state.settings = Settings(database_url=SecretUrl(postgres_url))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data.test") as http,
    ):
        made = await http.post("/v1/tallies", json={"count": 3}, headers={"idempotency-key": '"made"'})
        tally = made.json()["id"]
        increment = {"op": "update", "resource": "tallies", "id": tally, "increment": {"count": 1}}
        answer = await http.post(
            "/v1:transact", json={"operations": [increment]}, headers={"idempotency-key": '"added"'}
        )
        assert answer.status_code == 422, answer.text
        assert [it["pointer"] for it in answer.json()["errors"]] == ["/operations/0/increment/count"]
        assert (await http.get(f"/v1/tallies/{tally}")).json()["count"] == 3
