"""A stack finds what its processes are, and gives each the settings that it needs of the others."""

import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from hybridkit.adapters.fastapi import create_app
from hybridkit.dev._applications import load_application, settings_class_of
from hybridkit.errors import DeclarationError, MisuseError
from hybridkit.jobs import Jobs
from hybridkit.settings import (
    ApiSettings,
    BotSettings,
    MongoSettings,
    PostgresSettings,
    ServiceSettings,
    WorkerSettings,
)
from hybridkit.testing import StackService
from hybridkit.testing._stack_environment import Addresses, Members


class Api(ApiSettings):
    service_name: str = "shop_api"


class Worker(WorkerSettings):
    service_name: str = "shop_worker"


class Bot(BotSettings):
    service_name: str = "shop_bot"


class Rows(PostgresSettings):
    service_name: str = "rows"


class Documents(MongoSettings):
    service_name: str = "documents"


class Plain(ServiceSettings):
    service_name: str = "plain"


KINDS: dict[str, type[ServiceSettings]] = {
    "shop.api": Api,
    "shop.worker": Worker,
    "shop.bot": Bot,
    "shop.rows": Rows,
    "shop.documents": Documents,
    "shop.plain": Plain,
}


def test_a_job_that_two_workers_have_needs_the_name_of_one() -> None:
    """As with two processes of one module."""
    jobs = Jobs()

    @jobs.every(minutes=1)
    async def sweep() -> None: ...

    sys.modules["shop.worker"].jobs = jobs  # type: ignore[attr-defined]
    members = Members(["shop.api", "shop.worker", StackService("shop.worker", name="second")], callers=())
    with pytest.raises(MisuseError, match="several processes of the stack have a job 'sweep'"):
        members.with_job("sweep")
    with pytest.raises(MisuseError, match="there are none"):
        Members(["shop.api"], callers=()).with_job("sweep")


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    for name, settings in KINDS.items():
        monkeypatch.setitem(sys.modules, name, module_with(name, Settings=settings))


def module_with(name: str, **values: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(values)
    return module


def addresses(**changes: Any) -> Addresses:
    urls: dict[str, Any] = {
        "redis": "redis://r/0",
        "rabbitmq": "amqp://q/",
        "postgres": "postgresql://p/db",
        "mongo": "mongodb://m/",
        "fake_postgres_service": None,
        "fake_mongo_service": None,
        "telegram": "http://t",
        "telegram_token": "1:t",
    }
    return Addresses(**{**urls, **changes})


def environment_of(name: str, *modules: str, **changes: str | None) -> dict[str, str | None]:
    members = Members(modules, callers=["tests"])
    return members.environment(members.by_name[name], addresses(**changes), start_seconds=5)


def test_a_caller_gets_the_urls_of_the_data_services_and_a_key_that_they_know() -> None:
    """And the data services get the keys of all callers, also of the test's."""
    members = Members(KINDS, callers=["tests"])
    api, rows, documents = (
        members.environment(members.by_name[name], addresses(), start_seconds=5)
        for name in ("shop_api", "rows", "documents")
    )
    assert api["POSTGRES_SERVICE_URL"] == members.by_name["rows"].url
    assert api["MONGO_SERVICE_URL"] == members.by_name["documents"].url
    assert (api["POSTGRES_SERVICE_NAME"], api["MONGO_SERVICE_NAME"]) == ("rows", "documents")
    keys = json.loads(rows["SERVICE_TOKEN_KEYS"] or "")
    assert keys.keys() == {"shop_api", "shop_worker", "shop_bot", "plain", "tests"}
    assert keys["shop_api"] == api["SERVICE_TOKEN_KEY"]
    assert rows["DATABASE_URL"] == "postgresql://p/db"
    assert documents["DATABASE_URL"] == "mongodb://m/documents"
    assert documents["SERVICE_TOKEN_KEYS"] == rows["SERVICE_TOKEN_KEYS"]


def test_settings_of_the_parent_do_not_reach_a_process_by_accident() -> None:
    """What a stack does not set is removed from the environment, as a default of the settings is then right."""
    found = environment_of("shop_worker", "shop.worker")
    assert found["POSTGRES_SERVICE_URL"] is None
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] is None
    assert (found["REDIS_URL"], found["RABBITMQ_URL"]) == ("redis://r/0", "amqp://q/")
    assert "DATABASE_URL" not in found


def test_fakes_stand_in_for_data_services_and_telegram() -> None:
    """By their URLs, so that the process is none the wiser."""
    found = environment_of(
        "shop_bot", "shop.bot", fake_postgres_service="http://fp", fake_mongo_service="http://fm"
    )
    assert (found["POSTGRES_SERVICE_URL"], found["MONGO_SERVICE_URL"]) == ("http://fp", "http://fm")
    assert (found["TELEGRAM_API_URL"], found["BOT_TOKEN"]) == ("http://t", "1:t")


def test_a_process_without_servers_gets_none() -> None:
    """Its settings would refuse nothing, but its environment stays what it asks for."""
    found = environment_of("plain", "shop.plain")
    assert not {"REDIS_URL", "RABBITMQ_URL", "SERVICE_TOKEN_KEY", "DATABASE_URL"} & found.keys()
    assert found["ENVIRONMENT"] == "test"


def test_a_data_service_without_a_database_says_what_to_give() -> None:
    """The argument of the stack, the fixture, or the fake."""
    with pytest.raises(DeclarationError, match=r"rows needs a database: give the stack postgres=URL"):
        environment_of("rows", "shop.rows", postgres=None)
    own = StackService(module="shop.documents", environment={"DATABASE_URL": "mongodb://own/db"})
    members = Members([own], callers=())
    found = members.environment(members.all[0], addresses(mongo=None), start_seconds=5)
    assert found["DATABASE_URL"] == "mongodb://own/db"


def test_a_second_process_of_a_module_needs_a_name() -> None:
    """It keeps the name of the service, and so its key and its grants."""
    with pytest.raises(DeclarationError, match="two processes have the same name: shop_worker, shop_worker"):
        Members(["shop.worker", "shop.worker"], callers=())
    second = StackService(module="shop.worker", name="worker_2", port=4711)
    members = Members(["shop.worker", second], callers=())
    found = members.environment(members.by_name["worker_2"], addresses(), start_seconds=5)
    assert (found["SERVICE_NAME"], found["PORT"]) == ("shop_worker", "4711")
    assert "worker_2" in repr(members.by_name["worker_2"])


def test_a_stack_knows_which_servers_its_processes_need() -> None:
    """By the arguments of the stack."""
    assert Members(["shop.plain"], callers=()).servers == set()
    assert Members(["shop.worker"], callers=()).servers == {"redis", "rabbitmq"}
    assert Members(["shop.documents"], callers=()).servers == {"mongo"}
    assert Members(["shop.rows"], callers=()).servers == {"postgres", "rabbitmq"}


@pytest.mark.parametrize(
    ("module", "name"), [("shop.api.main", "api"), ("shop.worker", "worker"), ("main", "main")]
)
def test_settings_without_a_name_leave_it_to_the_module(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package of a `main`, and else the module."""
    for part in ("shop.api", module):
        monkeypatch.setitem(sys.modules, part, module_with(part, Settings=WorkerSettings))
    assert Members([module], callers=()).all[0].name == name


@pytest.fixture
def unknown() -> Iterator[str]:
    yield "shop.nowhere"
    sys.modules.pop("shop.nowhere", None)


def test_a_module_that_does_not_exist_is_named(unknown: str) -> None:
    """A module that it imports in vain is not taken for it."""
    with pytest.raises(DeclarationError, match=r"there is no module shop.nowhere: name it as in `python -m"):
        load_application(unknown)


def test_an_import_that_a_module_lacks_stays_what_it_is(tmp_path: Any, monkeypatch: Any) -> None:
    """The error is that of the application's own code."""
    (tmp_path / "lacking.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        load_application("lacking")


def test_the_settings_class_is_that_of_the_application_first() -> None:
    """Then the module's own, and hybridkit's only where there is no other; base classes give way."""

    class Base(WorkerSettings):
        service_name: str = "base"

    class Derived(Base):
        pass

    app = create_app(Api, title="Shop")
    assert settings_class_of(module_with("m", app=app, Other=Worker)) is Api
    assert settings_class_of(module_with("m", Base=Base, Derived=Derived, Kind=WorkerSettings)) is Derived
    assert settings_class_of(module_with("m", Kind=WorkerSettings)) is WorkerSettings
    with pytest.raises(DeclarationError, match="m should have one settings class, and has Bot, Worker"):
        settings_class_of(module_with("m", A=Worker, B=Bot))
    with pytest.raises(DeclarationError, match="has none"):
        settings_class_of(module_with("m"))
