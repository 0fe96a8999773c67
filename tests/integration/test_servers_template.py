"""`postgres_template` fills one database, and each test gets a copy of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest


async def execute(url: str, statement: str) -> Any:
    connection: Any = await asyncpg.connect(url)  # pyright: ignore[reportUnknownMemberType]
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def postgres_template() -> Callable[[str], None]:
    def migrate(url: str) -> None:
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, execute(url, "create table users (name text)")).result()

    return migrate


@pytest.mark.parametrize("attempt", [1, 2])
async def test_each_test_has_the_tables_and_none_of_the_rows(postgres_url: str, attempt: int) -> None:
    """What the first test writes, the second one does not see."""
    await execute(postgres_url, f"insert into users values ('{attempt}')")
    assert await execute(postgres_url, "select count(*) from users") == 1
