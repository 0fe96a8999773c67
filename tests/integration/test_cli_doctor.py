"""`hybridkit doctor` tells what is wrong with real servers, and what to change."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import aio_pika
import pytest
import redis
import trustme
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped
from typer.testing import CliRunner, Result

from hybridkit._cli._app import app
from hybridkit._cli._checks import _finding, _network
from hybridkit._cli._checks._finding import clock, examine
from hybridkit._cli._checks._network import check_network
from hybridkit._cli._checks._services import check_collector, check_data_service, check_telegram
from hybridkit.clients import PostgresDataClient
from hybridkit.dataservice import (
    DocumentCollection,
    RecordColumns,
    create_data_service,
    migrate,
)
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dev import Server
from hybridkit.errors import UnavailableError
from hybridkit.events import Event
from hybridkit.messaging import RobustConsumer, apply_topology, topology_of
from hybridkit.resources import Record, Resource
from hybridkit.settings import BotSettings, MongoSettings, PostgresSettings, WorkerSettings
from hybridkit.testing import FakeDataService, FakeTelegram

pytestmark = pytest.mark.real_server


class NewNote(BaseModel):
    title: str


class Note(NewNote, Record):
    pass


class Noted(Event, type="doctor.noted"):
    title: str


class Base(DeclarativeBase):
    pass


class NoteTable(RecordColumns, Base):
    __tablename__ = "notes"
    title: Mapped[str]


class Rows(PostgresSettings):
    service_name: str = "rows"


class Documents(MongoSettings):
    service_name: str = "documents"


class Worker(WorkerSettings):
    service_name: str = "shop_worker"


class Bot(BotSettings):
    service_name: str = "shop_bot"


NOTES = Resource("notes", record=Note, create=NewNote, update=NewNote)
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def module() -> Iterator[ModuleType]:
    made = ModuleType("service_of_the_doctor")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the worst finding of each check."""
    result = called("--json", *arguments, **environment)
    assert result.stdout, result.output
    order = ("ok", "warning", "problem")
    found = sorted(json.loads(result.stdout), key=lambda each: order.index(each["level"]))
    return result.exit_code, {each["check"]: each for each in found}


def called(*arguments: str, **environment: str) -> Result:
    command = ["doctor", "service_of_the_doctor", *arguments]
    return CliRunner().invoke(app, command, env=environment)


def levels(found: Mapping[str, Any]) -> dict[str, str]:
    return {check: each["level"] for check, each in found.items() if check != "settings.production"}


async def execute(url: str, statement: str) -> None:
    connection = await connect(url, timeout_seconds=10.0, command_seconds=60.0)
    await connection.execute(statement)
    await connection.close()


# ── data services ────────────────────────────────────────────────────────────────────────────────


def test_a_data_service_in_order_is_ok_in_every_line(
    module: ModuleType, postgres_url: str, rabbitmq_url: str
) -> None:
    """After its migration, and with its topology at the broker."""
    vars(module)["app"] = create_data_service(Rows, {NOTES: NoteTable})
    asyncio.run(migrate(postgres_url))
    asyncio.run(apply_topology(topology_of([]), rabbitmq_url))
    code, found = doctor(DATABASE_URL=postgres_url, RABBITMQ_URL=rabbitmq_url)
    assert code == 0
    assert set(levels(found).values()) == {"ok"}
    assert levels(found).keys() >= {
        "settings",
        "database",
        "database.connections",
        "database.clock",
        "database.schema",
        "rabbitmq",
        "rabbitmq.topology",
    }
    assert found["settings.production"]["level"] == "warning"  # the broker's user is guest
    shown = called(DATABASE_URL=postgres_url, RABBITMQ_URL=rabbitmq_url)
    assert "ok       database.schema" in shown.output
    assert "→ change it before the deployment" in shown.output
    assert shown.output.splitlines()[-1].endswith(" warning, 0 problem")


def test_a_database_that_does_not_fit_is_told(
    module: ModuleType, postgres_url: str, rabbitmq_url: str
) -> None:
    """Too few connections, no writes, impatience with idle sessions, and revisions that are missing."""
    vars(module)["app"] = create_data_service(Rows, {NOTES: NoteTable})
    name = postgres_url.rpartition("/")[2]
    for setting in ("idle_session_timeout = '10min'", "default_transaction_read_only = on"):
        asyncio.run(execute(postgres_url, f"ALTER DATABASE {name} SET {setting}"))
    code, found = doctor("--replicas", "500", DATABASE_URL=postgres_url, RABBITMQ_URL=rabbitmq_url)
    assert code == 1
    told = levels(found)
    assert (told["database.connections"], told["database.writable"]) == ("problem", "problem")
    assert (told["database.keep_alive"], told["database.schema"]) == ("warning", "warning")
    assert found["database.connections"]["advice"] == "raise max_connections, or lower DATABASE_POOL_SIZE"
    assert "hk_0001" in found["database.schema"]["detail"]
    assert told["rabbitmq.topology"] == "warning"
    assert "hk.unrouted" in found["rabbitmq.topology"]["detail"]
    most = int(found["database.connections"]["detail"].split(" of ")[1].split()[0])
    crowded = str(int(most * 0.9 / 13))
    _, found = doctor("--replicas", crowded, DATABASE_URL=postgres_url, RABBITMQ_URL=rabbitmq_url)
    assert found["database.connections"]["level"] == "warning"


def test_a_mongodb_without_transactions_is_told(module: ModuleType, mongo_url: str) -> None:
    """And the indexes that it lacks."""
    vars(module)["app"] = create_data_service(Documents, {NOTES: DocumentCollection()})
    code, found = doctor(DATABASE_URL=mongo_url)
    assert code == 0
    assert levels(found) == {
        "settings": "ok",
        "database": "ok",
        "database.clock": "ok",
        "database.schema": "warning",
        "database.transactions": "warning",
    }


def test_a_mongodb_with_transactions_is_ok(module: ModuleType, mongo_transactions_url: str) -> None:
    """A replica set, also one of a single server."""
    vars(module)["app"] = create_data_service(Documents, {NOTES: DocumentCollection()})
    _, found = doctor(DATABASE_URL=mongo_transactions_url)
    assert "database.transactions" not in found
    assert found["database"]["level"] == "ok"


def test_servers_that_are_away_are_problems_with_advice(module: ModuleType) -> None:
    """Each on a line of its own, without the password in its URL."""
    vars(module)["app"] = create_data_service(Rows, {NOTES: NoteTable})
    code, found = doctor(
        DATABASE_URL="postgresql://user:s3cr3t-word@127.0.0.1:1/db",
        RABBITMQ_URL="amqp://user:s3cr3t-word@127.0.0.1:1/",
    )
    assert code == 1
    assert found["database"]["advice"] == "start the database, or correct DATABASE_URL"
    assert found["rabbitmq"]["level"] == found["database.schema"]["level"] == "problem"
    assert "s3cr3t" not in json.dumps(found)


# ── Redis and RabbitMQ ───────────────────────────────────────────────────────────────────────────


def test_a_redis_that_forgets_is_told(
    module: ModuleType, own_redis_server: Server, rabbitmq_url: str
) -> None:
    """Eviction is a problem, and so is keeping nothing on disk in production."""
    vars(module)["Settings"] = Worker
    environment = {"REDIS_URL": own_redis_server.url, "RABBITMQ_URL": rabbitmq_url, "ENVIRONMENT": "test"}
    with redis.Redis.from_url(own_redis_server.url) as client:
        client.config_set("appendonly", "yes")
        _, found = doctor(**environment)
        assert (found["redis.policy"]["level"], found["redis.persistence"]["level"]) == ("ok", "ok")
        assert (found["redis"]["level"], found["redis.clock"]["level"]) == ("ok", "ok")

        client.config_set("appendonly", "no")
        client.config_set("save", "3600 1")
        _, found = doctor(**environment)
        assert "snapshots only" in found["redis.persistence"]["detail"]

        client.config_set("save", "")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", client.info("memory")["used_memory"])
        client.config_set("timeout", 5)
        code, found = doctor(**environment)
    assert code == 1
    assert levels(found) | {
        "redis.policy": "problem",
        "redis.persistence": "warning",
        "redis.memory": "warning",
        "redis.keep_alive": "warning",
    } == levels(found)
    assert "noeviction" in found["redis.policy"]["advice"]
    production = {"ALLOW_PLAINTEXT_URLS": "true", "ENVIRONMENT": "production"}
    urls = {"RABBITMQ_URL": "amqp://shop:a-long-enough-word@127.0.0.1:1/", "REDIS_URL": own_redis_server.url}
    _, found = doctor(**production, **urls)
    assert found["redis.persistence"]["level"] == "problem", found
    assert "settings.production" not in found


def test_a_queue_that_differs_from_its_declaration_is_a_problem(
    module: ModuleType, rabbitmq_url: str, redis_url: str
) -> None:
    """As the consumer could not start."""
    consumer = RobustConsumer("doctor.notes")

    @consumer.on(Noted)
    async def note(event: Noted) -> None:
        raise AssertionError

    async def declare_otherwise() -> None:
        async with await aio_pika.connect(rabbitmq_url) as connection:
            channel = await connection.channel()
            await channel.declare_queue("doctor.notes", durable=True)

    asyncio.run(declare_otherwise())
    vars(module).update(Settings=Worker, notes=consumer)
    code, found = doctor(RABBITMQ_URL=rabbitmq_url, REDIS_URL=redis_url)
    assert code == 1
    assert found["rabbitmq.topology"]["level"] == "problem"
    assert "queue doctor.notes is conflicting" in found["rabbitmq.topology"]["detail"]


# ── services over HTTP ───────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def answering(*headers: str, tls: ssl.SSLContext | None = None) -> AsyncGenerator[int]:
    """Answer every request with 200 and these headers."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = ["HTTP/1.1 200 OK", "Content-Length: 2", "Content-Type: application/json", *headers]
        writer.write(("\r\n".join([*lines, "", ""]) + "{}").encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_data_service_in_order_is_ok() -> None:
    """It answers, and its clock is right where it tells the time."""
    async with FakeDataService({NOTES}).serve() as url:
        found = await check_data_service("data", PostgresDataClient(url, service="shop_api"), url)
    assert [each.level for each in found] == ["ok"] * len(found)


async def test_impatient_keep_alive_and_a_wrong_clock_are_told() -> None:
    """By the headers of the data service, or of what stands before it."""
    late = format_datetime(datetime.now(UTC) - timedelta(seconds=90), usegmt=True)
    async with answering("Keep-Alive: timeout=5, max=100", f"Date: {late}") as port:
        url = f"http://127.0.0.1:{port}"
        found = await check_data_service("data", PostgresDataClient(url, service="shop_api"), url)
    assert [(each.check, each.level) for each in found] == [
        ("data", "ok"),
        ("data.clock", "problem"),
        ("data.keep_alive", "warning"),
    ]
    assert "behind" in found[1].detail
    async with answering("Keep-Alive: timeout=75") as port:
        url = f"http://127.0.0.1:{port}"
        found = await check_data_service("data", PostgresDataClient(url, service="shop_api"), url)
    assert [each.check for each in found] == ["data"]


async def test_the_bot_s_token_is_tried(module: ModuleType) -> None:
    """One that the Bot API does not know is a problem; the token stands in no message."""
    async with FakeTelegram() as telegram:
        [known] = await check_telegram(telegram.url, telegram.token)
        [unknown] = await check_telegram(telegram.url, "1:somebody-else")
        telegram.fail("getMe", status=502)
        with pytest.raises(UnavailableError, match="502"):
            await check_telegram(telegram.url, telegram.token)
    assert (known.level, unknown.level) == ("ok", "problem")
    with pytest.raises(UnavailableError) as caught:
        await check_telegram(NOWHERE, "1:somebody-else")
    assert "somebody" not in str(caught.value)
    async with answering() as port:
        [collector] = await check_collector(f"http://127.0.0.1:{port}")
    assert collector.level == "ok"


def test_a_bot_has_lines_for_all_that_it_reaches(
    module: ModuleType, redis_url: str, rabbitmq_url: str
) -> None:
    """Data services, the Bot API and the collector, each with its own advice."""
    vars(module)["Settings"] = Bot
    code, found = doctor(
        REDIS_URL=redis_url,
        RABBITMQ_URL=rabbitmq_url,
        POSTGRES_SERVICE_URL=NOWHERE,
        MONGO_SERVICE_URL=NOWHERE,
        SERVICE_TOKEN_KEY="k" * 40,
        BOT_TOKEN="1:a-token-of-the-test",
        TELEGRAM_API_URL=NOWHERE,
        OTEL_EXPORTER_OTLP_ENDPOINT=NOWHERE,
    )
    assert code == 1
    away = {check for check, level in levels(found).items() if level == "problem"}
    assert away == {"postgres_service", "mongo_service", "telegram", "traces"}
    assert "POSTGRES_SERVICE_URL" in found["postgres_service"]["advice"]


# ── names, certificates, clocks ──────────────────────────────────────────────────────────────────


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


def serving(authority: trustme.CA, *, days: float) -> ssl.SSLContext:
    ends = datetime.now(UTC) + timedelta(days=days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", not_after=ends).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("days", "level", "words"),
    [
        (60, "ok", "valid for 59 more days"),
        (3, "warning", "valid for 2 more days"),
        (-1, "problem", "certificate has expired"),
    ],
)
async def test_certificates_are_told_before_they_expire(
    authority: trustme.CA, days: float, level: str, words: str
) -> None:
    """Three weeks before it is a warning."""
    async with answering(tls=serving(authority, days=days)) as port:
        found = await check_network("data", f"https://localhost:{port}/")
    [certificate] = [each for each in found if each.check == "data.tls"]
    assert certificate.level == level
    assert words in certificate.detail


async def test_a_certificate_of_a_stranger_is_a_problem(tmp_path: Path) -> None:
    """The option of the URL that names the authority counts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "own.pem")
    async with answering(tls=serving(authority, days=60)) as port:
        [_, stranger] = await check_network("redis", f"rediss://localhost:{port}/0")
        [_, known] = await check_network(
            "redis", f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/own.pem"
        )
    assert (stranger.level, known.level) == ("problem", "ok")


async def test_a_postgresql_without_tls_is_told(postgres_url: str) -> None:
    """Where the URL wants it; and so is a port that nobody listens on."""
    _, at, place = postgres_url.rpartition("@")
    host = place.partition("/")[0] if at else postgres_url.partition("://")[2].partition("/")[0]
    [plain] = await check_network("database", f"postgresql://{host}/db?sslmode=verify-full")
    assert (plain.level, "has no TLS" in plain.detail) == ("problem", True)
    [away] = await check_network("database", "amqps://127.0.0.1:1/")
    assert (away.level, away.advice) == ("problem", "see whether it listens with TLS")


async def test_names_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nobody has is a problem, and a slow resolver a warning; addresses are no names."""
    assert await check_network("x", "amqp://127.0.0.1:5672,[::1]:5672/") == []
    [known] = await check_network("x", "redis://localhost:6379/0")
    assert known.check == "x.dns"
    monkeypatch.setattr(_network, "SLOW_DNS_SECONDS", 0.0)
    [slow] = await check_network("x", "redis://localhost:6379/0")
    assert slow.level == "warning"

    async def nobody(*_: Any) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", nobody, raising=False)
    [unknown] = await check_network("x", "redis://nobody.test:6379/0")
    assert (unknown.level, unknown.detail) == ("problem", "nobody.test: Name or service not known")


@pytest.mark.parametrize(
    ("seconds", "level"), [(0, "ok"), (-5, "warning"), (5, "warning"), (100, "problem"), (-100, "problem")]
)
def test_a_clock_that_differs_is_told(seconds: float, level: str) -> None:
    """Ahead or behind."""
    found = clock("x.clock", datetime.now(UTC).timestamp() + seconds)
    assert found.level == level
    assert clock("x", datetime.now(UTC).timestamp() + 2.5, resolution_seconds=1).level == "ok"


async def test_a_check_ends_in_its_time_and_tells_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not ours may quote a URL, so only its type is shown."""
    monkeypatch.setattr(_finding, "CHECK_SECONDS", 0.01)

    async def hang() -> list[_finding.Finding]:
        await asyncio.Event().wait()
        raise AssertionError

    async def fail() -> list[_finding.Finding]:
        raise ValueError("amqp://user:s3cr3t@host")

    [late] = await examine("x", hang(), advice="start it")
    assert (late.level, late.detail, late.advice) == ("problem", "no answer within 0.01 s", "start it")
    monkeypatch.setattr(_finding, "CHECK_SECONDS", 10)
    [failed] = await examine("x", fail(), advice="start it")
    assert failed.detail == "the check fails with ValueError"


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


def test_settings_that_are_missing_are_problems(module: ModuleType) -> None:
    """One line for each, and nothing else can be looked at."""
    vars(module)["Settings"] = Worker
    result = called()
    assert result.exit_code == 1
    assert "problem  settings  REDIS_URL: is not set" in result.output
    assert "0 ok, 0 warning, 2 problem" in result.output


def test_a_module_without_settings_is_wrong_use(module: ModuleType, capsys: Callable[..., Any]) -> None:
    """With exit code 2, as for a module that does not exist."""
    result = called()
    assert result.exit_code == 2
    assert "should have one settings class" in result.output
