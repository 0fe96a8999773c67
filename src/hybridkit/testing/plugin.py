"""The pytest plugin: fixtures with real PostgreSQL, MongoDB, Redis and RabbitMQ servers.

`postgres_url`, `mongo_url`, `redis_url` and `rabbitmq_url` give each test a database or virtual host on a server that
is started once per run, also over the processes of pytest-xdist; `mongo_transactions_url` does so on a MongoDB that
has transactions. `make_stack` runs an application's processes on them, or on fakes. `own_postgres_server` and the
like give a test a whole server, to be killed, frozen and restarted. A test whose server can't be started on this
machine is skipped with the reason, or fails where the variable CI is set.

Nothing is imported or started before a test asks for it.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from hybridkit.dev import Kind, Server, SharedServers
    from hybridkit.errors import ServerMissingError
    from hybridkit.testing import Stack, StackService

# The suite's assertions show their values, like those of a test file.
pytest.register_assert_rewrite("hybridkit.testing.conformance")

_RUN_KEY = pytest.StashKey[str]()
_SHARED = pytest.StashKey["SharedServers"]()
# By the function that fills the template, because a module can override the fixture.
_TEMPLATES = pytest.StashKey[dict[Callable[[str], None] | None, str]]()
_WORKER_INPUT = "hybridkit_run"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and name the run, by which the processes of pytest-xdist find its servers."""
    config.addinivalue_line(
        "markers", "real_server: the test proves nothing against a stand-in such as fakeredis"
    )
    given: dict[str, str] = getattr(config, "workerinput", {})
    config.stash[_RUN_KEY] = given.get(_WORKER_INPUT) or secrets.token_hex(8)
    # Cleanups run in reverse order: this one runs after those that the tests add.
    config.add_cleanup(lambda: _wait_until_gone(config))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the name of the run to a worker of pytest-xdist."""
    node.workerinput[_WORKER_INPUT] = node.config.stash[_RUN_KEY]


@pytest.fixture(scope="session")
def postgres_template() -> Callable[[str], None] | None:
    """Return the function that fills the template of the tests' databases, given its URL; None, the default, for none.

    Override the fixture to provide it.
    """
    return None


@pytest.fixture
def postgres_url(
    request: pytest.FixtureRequest, postgres_template: Callable[[str], None] | None
) -> Iterator[str]:
    """Yield the URL of a database for the test, a copy of what `postgres_template` filled; dropped afterwards."""
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
    """Yield a URL with a database name for the test; the database is dropped afterwards."""
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
    """Yield a URL like `mongo_url`, on a server that has transactions: several records, dry runs, batches, calls."""
    from hybridkit.testing import _isolation  # noqa: PLC0415 - costs nothing where no test asks for it

    with _isolation.mongo_database(_find(request, "mongo_transactions")) as url:
        yield url


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of a numbered database for the test; emptied afterwards."""
    from hybridkit.testing import _isolation  # noqa: PLC0415 - costs nothing where no test asks for it

    with _isolation.redis_database(_find(request, "redis")) as url:
        yield url


@pytest.fixture
def rabbitmq_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of a virtual host for the test; deleted afterwards with its queues and exchanges."""
    from hybridkit.testing import _isolation  # noqa: PLC0415 - costs nothing where no test asks for it

    with _isolation.rabbitmq_virtual_host(_find(request, "rabbitmq")) as url:
        yield url


@pytest.fixture
def own_postgres_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """Start an empty PostgreSQL for this test only, which may kill, freeze and restart it."""
    yield from _own(request, "postgres")


@pytest.fixture
def own_mongo_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """Start an empty MongoDB for this test only, which may kill, freeze and restart it."""
    yield from _own(request, "mongo")


@pytest.fixture
def own_mongo_transactions_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """Start an empty MongoDB with transactions for this test only, which may kill it and set fail points."""
    yield from _own(request, "mongo_transactions")


@pytest.fixture
def own_redis_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """Start an empty Redis for this test only, which may kill, freeze and restart it."""
    yield from _own(request, "redis")


@pytest.fixture
def own_rabbitmq_server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """Start an empty RabbitMQ node for this test only, which may kill, freeze and restart it; it takes about 5 s."""
    yield from _own(request, "rabbitmq")


@pytest.fixture
def own_rabbitmq_cluster() -> Iterator[Sequence["Server"]]:
    """Start a cluster of three RabbitMQ nodes for this test only, which may kill and restart each; about 10 s."""
    from hybridkit.dev import LocalServers  # noqa: PLC0415 - costs nothing where no test asks for it
    from hybridkit.errors import ServerMissingError  # noqa: PLC0415

    with LocalServers() as own:
        try:
            nodes = own.start_rabbitmq_cluster()
        except ServerMissingError as error:
            _give_up(_in_one_line(error))
        yield nodes


@pytest.fixture
def make_stack(request: pytest.FixtureRequest, tmp_path: Path) -> "Callable[..., Stack]":
    """Return a function that makes a `hybridkit.testing.Stack`, with the logs of its processes in `tmp_path`.

    It takes the arguments of `Stack`, and `real_servers=True`: then Redis, RabbitMQ and the databases that the
    processes need, and that are not given, are those of the fixtures `redis_url`, `rabbitmq_url`, `postgres_url` and
    `mongo_url`.
    """

    def make(*services: "str | StackService", real_servers: bool = False, **options: Any) -> "Stack":
        from hybridkit.testing import Stack  # noqa: PLC0415 - costs nothing where no test asks for it
        from hybridkit.testing._stack_environment import Members  # noqa: PLC0415

        if real_servers:
            for option in Members(services, callers=()).servers - options.keys():
                options[option] = request.getfixturevalue(f"{option}_url")
        options.setdefault("log_directory", tmp_path / "stack")
        return Stack(*services, **options)

    return make


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
    # A fixture of the session does not see the markers of a test; each test checks through its own fixture.
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
    # The controller of pytest-xdist has used no server itself, but it is the process that ends last.
    if _SHARED in config.stash or config.pluginmanager.has_plugin("dsession"):
        _shared(config).close()
