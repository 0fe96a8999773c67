"""`hybridkit streams` and `hybridkit revision` for a data service that keeps streams."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase
from typer.testing import CliRunner, Result

from hybridkit._cli._app import app
from hybridkit.dataservice import StreamColumns, create_data_service
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.settings import MongoSettings, PostgresSettings
from tests.helpers.accounts import ACCOUNTS

pytestmark = pytest.mark.real_server

APPEND = """
    INSERT INTO account_events (stream_id, version, xid, event_id, event_type, event_version, data, occurred_at, caller,
        request_id)
    SELECT 'a', n, 1000000000 + n, gen_random_uuid(), 'account.deposited', 1, '{}', now(), 'test', 'r'
    FROM generate_series(1, 3) AS n
"""


def declare(name: str, settings: Any, **options: Any) -> str:
    module = ModuleType(name)
    vars(module)["app"] = create_data_service(settings, {}, **options)
    sys.modules[name] = module
    return name


@pytest.fixture
def accounts_service(tmp_path: Path) -> Iterator[str]:
    class Base(DeclarativeBase):
        pass

    class AccountEvents(StreamColumns, Base):
        __tablename__ = "account_events"

    yield declare(
        "accounts_service",
        PostgresSettings,
        streams={ACCOUNTS: AccountEvents},
        migrations=tmp_path / "migrations",
    )
    del sys.modules["accounts_service"]


def hybridkit(*arguments: str, url: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, env={"DATABASE_URL": url})


def execute(url: str, statement: str) -> None:
    async def run() -> None:
        connection: Any = await connect(url, timeout_seconds=10.0, command_seconds=60.0)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(run())


def test_a_table_of_streams_is_migrated_and_its_log_rebased(accounts_service: str, postgres_url: str) -> None:
    """The revision has all columns and the log's index; a new epoch is no difference to the declared table."""
    options = ("-m", "accounts", "--database-url", postgres_url)
    assert hybridkit("migrate", accounts_service, url=postgres_url).exit_code == 0
    assert hybridkit("revision", accounts_service, *options).exit_code == 0
    migrated = hybridkit("migrate", accounts_service, url=postgres_url)
    assert migrated.exit_code == 0, migrated.output
    assert hybridkit("revision", accounts_service, *options).output.startswith("nothing differs")

    in_order = hybridkit("streams", "rebase", accounts_service, url=postgres_url)
    assert (in_order.exit_code, in_order.output) == (0, "every log is in order\n"), in_order.output
    execute(postgres_url, APPEND)
    rebased = hybridkit("streams", "rebase", accounts_service, "--json", url=postgres_url)
    assert json.loads(rebased.output) == {"rebased": [{"stream": "accounts", "epoch": 2}]}
    again = hybridkit("streams", "rebase", accounts_service, url=postgres_url)
    assert again.output == "every log is in order\n"
    execute(postgres_url, "UPDATE account_events SET epoch = 2")
    shown = hybridkit("streams", "rebase", accounts_service, url=postgres_url)
    assert shown.output.split() == ["rebased", "accounts", "epoch", "3"]
    assert hybridkit("revision", accounts_service, *options).output.startswith("nothing differs")


def test_a_mongo_service_has_no_logs() -> None:
    """The command says so, instead of looking for a table."""
    name = declare("stats_service", MongoSettings)
    try:
        refused = hybridkit("streams", "rebase", name)
    finally:
        del sys.modules[name]
    assert (refused.exit_code, "keeps no streams" in refused.output) == (2, True)
