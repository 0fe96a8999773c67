"""The pytest plugin: real PostgreSQL, MongoDB, Redis and RabbitMQ for each test that asks for one.

`postgres_url`, `mongo_url`, `redis_url`, `rabbitmq_url` give a test a place of its own (database, virtual host) on a
server that is started once per run, also over the processes of pytest-xdist; `mongo_transactions_url` does so on a
MongoDB that has transactions. `own_postgres_server` and its like give it a whole server, to be killed, frozen and
restarted. A test that needs a server which can't be had here is skipped with the reason; where the variable CI is set,
it fails.

Nothing is imported or started before a test asks for it.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from hybridkit.dev import Kind, Server, SharedServers
    from hybridkit.errors import ServerMissingError

# Its assertions shall say what was found, as those of a test file do.
pytest.register_assert_rewrite("hybridkit.testing.conformance")

_RUN_KEY = pytest.StashKey[str]()
_SHARED = pytest.StashKey["SharedServers"]()
# By the function that fills it: a module can have another one than the rest of the suite.
_TEMPLATES = pytest.StashKey[dict[Callable[[str], None] | None, str]]()
_WORKER_INPUT = "hybridkit_run"


def pytest_configure(config: pytest.Config) -> None:
    """Name the run, so that its processes find each other, and register the marker."""
    config.addinivalue_line(
        "markers", "real_server: the test proves nothing against a stand-in such as fakeredis"
    )
    given: dict[str, str] = getattr(config, "workerinput", {})
    config.stash[_RUN_KEY] = given.get(_WORKER_INPUT) or secrets.token_hex(8)
    # Cleaned up in reverse order: this comes after everything that the tests have added.
    config.add_cleanup(lambda: _wait_until_gone(config))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist which run it belongs to."""
    node.workerinput[_WORKER_INPUT] = node.config.stash[_RUN_KEY]


@pytest.fixture(scope="session")
def postgres_template() -> Callable[[str], None] | None:
    """Override it to fill the database that each test gets a copy of: a function that is given its URL."""
    return None


@pytest.fixture
def postgres_url(
    request: pytest.FixtureRequest, postgres_template: Callable[[str], None] | None
) -> Iterator[str]:
    """URL of a database of the test's own, a copy of what `postgres_template` filled; dropped afterwards."""
    from hybridkit.testing import _isolation  # noqa: PLC0415 - costs nothing where no test asks for it

    server = _find(request, "postgres")
    templates = request.config.stash.setdefault(_TEMPLATES, {})
    if postgres_template not in templates:
        cleanup = ExitStack()
        filled = _isolation.postgres_template(server, postgres_template)
        templates[postgres_template] = cleanup.enter_context(filled)
        request.config.add_cleanup(cleanup.close)
    with _isolation.postgres_database(server, template=templates[postgres_template]) as url:
        yield url


@pytest.fixture
def mongo_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL that ends with a database name of the test's own; dropped afterwards."""
    from hybridkit.testing import _isolation  # noqa: PLC0415 - costs nothing where no test asks for it

    server = _find(request, "mongo")
    if not server.is_real:
        # neosqlite keeps all databases in one, so the stand-in is not shared.
        yield from (_isolation.with_path(own.url, "test") for own in _own(request, "mongo"))
        return
    with _isolation.mongo_database(server) as url:
        yield url


@pytest.fixture
def mongo_transactions_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `mongo_url`, on a server that has transactions: several records, dry runs, batches, calls."""
    from hybridkit.testing import _isolation  # noqa: PLC0415 - costs nothing where no test asks for it

    with _isolation.mongo_database(_find(request, "mongo_transactions")) as url:
        yield url


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a numbered database of the test's own; emptied afterwards."""
    from hybridkit.testing import _isolation  # noqa: PLC0415 - costs nothing where no test asks for it

    with _isolation.redis_database(_find(request, "redis")) as url:
        yield url


@pytest.fixture
def rabbitmq_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a virtual host of the test's own; deleted afterwards with all that is in it."""
    from hybridkit.testing import _isolation  # noqa: PLC0415 - costs nothing where no test asks for it

    with _isolation.rabbitmq_virtual_host(_find(request, "rabbitmq")) as url:
        yield url


@pytest.fixture
def own_postgres_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """A PostgreSQL that only this test uses, fresh and empty: kill, freeze and restart it."""
    yield from _own(request, "postgres")


@pytest.fixture
def own_mongo_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """A MongoDB that only this test uses, fresh and empty: kill, freeze and restart it."""
    yield from _own(request, "mongo")


@pytest.fixture
def own_mongo_transactions_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """A MongoDB with transactions that only this test uses: kill, freeze and restart it, set fail points."""
    yield from _own(request, "mongo_transactions")


@pytest.fixture
def own_redis_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """A Redis that only this test uses, fresh and empty: kill, freeze and restart it."""
    yield from _own(request, "redis")


@pytest.fixture
def own_rabbitmq_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """A RabbitMQ node that only this test uses, fresh and empty: kill, freeze and restart it; 5 seconds."""
    yield from _own(request, "rabbitmq")


@pytest.fixture
def own_rabbitmq_cluster() -> Iterator[Sequence["Server"]]:
    """A cluster of three RabbitMQ nodes that only this test uses: kill, freeze and restart each; 10 seconds."""
    from hybridkit.dev import LocalServers  # noqa: PLC0415 - costs nothing where no test asks for it
    from hybridkit.errors import ServerMissingError  # noqa: PLC0415

    with LocalServers() as own:
        try:
            nodes = own.start_rabbitmq_cluster()
        except ServerMissingError as error:
            _give_up(_in_one_line(error))
        yield nodes


def _find(request: pytest.FixtureRequest, kind: "Kind") -> "Server":
    from hybridkit.errors import ServerMissingError  # noqa: PLC0415 - costs nothing where no test asks for it

    try:
        server = _shared(request.config).get(kind)
    except ServerMissingError as error:
        _give_up(_in_one_line(error))
    return _checked(request, server)


def _own(request: pytest.FixtureRequest, kind: "Kind") -> Iterator["Server"]:
    from hybridkit.dev import LocalServers  # noqa: PLC0415 - costs nothing where no test asks for it
    from hybridkit.errors import ServerMissingError  # noqa: PLC0415

    with LocalServers() as own:
        try:
            server = own.start(kind, private=True)
        except ServerMissingError as error:
            _give_up(_in_one_line(error))
        yield _checked(request, server)


def _checked(request: pytest.FixtureRequest, server: "Server") -> "Server":
    # A session's fixture has no markers of a test; each test asks again through its own fixture.
    if not server.is_real and request.node.get_closest_marker("real_server"):
        _give_up(f"the test needs a real {server.kind} server, and there is only a stand-in: {server.source}")
    return server


def _in_one_line(error: "ServerMissingError") -> str:
    return f"{str(error).partition('\n')[0]} ({'; '.join(error.missing)})"


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"CI is set, so this is no reason to skip: {reason}", pytrace=False)
    pytest.skip(reason)


def _shared(config: pytest.Config) -> "SharedServers":
    from hybridkit.dev import SharedServers  # noqa: PLC0415 - costs nothing where no test asks for it

    if _SHARED not in config.stash:
        shared = config.stash[_SHARED] = SharedServers(config.stash[_RUN_KEY])
        config.add_cleanup(shared.release)
    return config.stash[_SHARED]


def _wait_until_gone(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    # The controller of pytest-xdist has used none itself, but it is the one that ends last.
    if _SHARED in config.stash or config.pluginmanager.has_plugin("dsession"):
        _shared(config).close()
