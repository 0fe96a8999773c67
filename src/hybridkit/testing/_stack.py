"""The processes of an application, started for a test as they are in production."""

import asyncio
import re
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, overload

import httpx

from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.coordination import connect_redis
from hybridkit.dev import DevelopmentBroker, LocalServers, LogLine, Service, Supervisor, merge_logs
from hybridkit.errors import MisuseError
from hybridkit.events import Message
from hybridkit.jobs._records import JobRecord
from hybridkit.messaging import RobustPublisher
from hybridkit.settings import MongoSettings, PostgresSettings
from hybridkit.testing._collected_events import CollectedEvents, collect_events
from hybridkit.testing._data_service import FakeDataService
from hybridkit.testing._stack_environment import Addresses, Member, Members, StackService
from hybridkit.testing._stack_logs import error_lines
from hybridkit.testing._telegram._fake import FakeTelegram
from hybridkit.testing._waiting import until

TESTS: Final = "tests"
"""The name under which the test itself publishes and, where it is granted something, calls."""
_REDIS_SECONDS: Final = 2.0
STOP_SECONDS: Final = 60.0
TAIL_LINES: Final = 8


@dataclass(frozen=True, slots=True)
class _Open:
    """What a stack has while its block runs."""

    supervisor: Supervisor
    addresses: Addresses
    resources: AsyncExitStack


class Stack:
    """Runs the processes of an application on free ports inside an `async with` block, each by `python -m MODULE`.

    Of each module it finds the settings class, and sets what that needs: ports, the URLs of the others, the servers,
    and a service token key for each caller. Data services start first. The block begins when all are ready. At its end
    all get SIGTERM, the last one started first.

    ```text
    async with Stack("db_postgres_service.main", "api_service.main", postgres=postgres_url) as stack:
        answer = await stack.http("api_service").post("/users", json={"email": "a@example.com"})
    ```

    Args:
        services: the modules, or a `StackService` for one with a name or an environment of its own.
        postgres: the URL of the database for a PostgreSQL data service in the stack, or a fake in its place.
        mongo: the same for MongoDB.
        redis: the URL of a Redis; None starts one for the stack, if a process needs it.
        rabbitmq: the URL of a RabbitMQ; None starts a `DevelopmentBroker` for the stack, if a process needs it.
        callers: further names that may call the data services, such as one that the `grants` of the data service
            give something. A data service and a `FakeDataService(…, grants=…)` let a caller do what it is granted.
        log_directory: the folder for `NAME.log` of each process; None for one that ends with the block.
        start_seconds: the time that the processes may take to become ready.
        strict: whether a block that ends well raises for logged errors and for exit codes other than 0.

    Attributes:
        telegram: the fake Telegram of the bots in the stack.
        broker: the development broker, with its faults; None where `rabbitmq` is given or not needed.
    """

    def __init__(
        self,
        *services: str | StackService,
        postgres: FakeDataService | str | None = None,
        mongo: FakeDataService | str | None = None,
        redis: str | None = None,
        rabbitmq: str | None = None,
        callers: Collection[str] = (),
        log_directory: Path | None = None,
        start_seconds: float = 60.0,
        strict: bool = False,
    ) -> None:
        self.telegram = FakeTelegram()
        self.broker: DevelopmentBroker | None = None
        self._members = Members(services, callers={TESTS, *callers})
        self._postgres, self._mongo, self._redis, self._rabbitmq = postgres, mongo, redis, rabbitmq
        self._log_directory = log_directory
        self._start_seconds = start_seconds
        self._is_strict = strict
        self._expected: list[re.Pattern[str]] = []
        self._ended_by_test: set[str] = set()
        self._resources: AsyncExitStack | None = None
        self._opened: _Open | None = None

    def __repr__(self) -> str:
        return f"Stack({', '.join(f'{member.name}={member.url}' for member in self._members.all)})"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as resources:
            resources.callback(self._forget)
            opened = self._opened = await self._open(resources)
            for group in (self._members.data_services, self._members.business_services):
                services = [self._service(member, opened.addresses) for member in group]
                await opened.supervisor.start(*services, timeout_seconds=self._start_seconds)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, resources = self._entered(), self._resources
        async with resources or AsyncExitStack():
            await opened.resources.aclose()
            codes = await opened.supervisor.stop(timeout_seconds=STOP_SECONDS)
            problems = [*self._unexpected_codes(codes), *map(str, self.errors())]
        if self._is_strict and error is None and problems:
            raise AssertionError("the stack ended with problems:\n" + "\n".join(problems))

    # ── the processes ────────────────────────────────────────────────────────────────────────────

    @property
    def names(self) -> Sequence[str]:
        """The names of the processes, as declared."""
        return [member.name for member in self._members.all]

    def url(self, name: str) -> str:
        """Return the base URL of a process's HTTP application."""
        return self._member(name).url

    def management_url(self, name: str) -> str:
        """Return the base URL of a process's management port, with its `/ready` and `/metrics`."""
        return self._member(name).management_url

    async def stop(self, name: str) -> int:
        """Send SIGTERM to a process, wait until it has ended, and return its exit code."""
        self._ended_by_test.add(self._member(name).name)
        codes = await self._entered().supervisor.stop(name, timeout_seconds=STOP_SECONDS)
        return codes[name]

    async def stop_all(self) -> dict[str, int]:
        """Send SIGTERM to all processes, the last one started first, and return the exit code of each by name."""
        self._ended_by_test.update(self.names)
        return await self._entered().supervisor.stop(timeout_seconds=STOP_SECONDS)

    async def kill(self, name: str) -> None:
        """Send SIGKILL to a process and its own processes, and wait until it has ended."""
        self._ended_by_test.add(self._member(name).name)
        await self._entered().supervisor.kill(name)

    def freeze(self, name: str) -> None:
        """Send SIGSTOP to a process: its connections stay open, and nothing answers."""
        self._entered().supervisor.freeze(self._member(name).name)

    def thaw(self, name: str) -> None:
        """Send SIGCONT to a process, which goes on where it was frozen."""
        self._entered().supervisor.thaw(self._member(name).name)

    async def restart(self, name: str) -> None:
        """Start a process again on its port, after SIGTERM where it still runs, and wait until it is ready.

        Raises:
            ServerStartError: it ended or was not ready in time; the message has the end of its log.
        """
        opened, member = self._entered(), self._member(name)
        await opened.supervisor.stop(name, timeout_seconds=STOP_SECONDS)
        await opened.supervisor.start(
            self._service(member, opened.addresses), timeout_seconds=self._start_seconds
        )
        self._ended_by_test.discard(name)

    async def run_job(self, job: str, *, service: str | None = None, take_seconds: float = 30.0) -> None:
        """Have a worker run one of its jobs now, beside its schedule, and wait until it is done.

        Args:
            job: the job's name, which is that of its function.
            service: the worker; None for the process of the stack whose module has a job of that name.
            take_seconds: the seconds within which the worker has to begin.

        Raises:
            AssertionError: the run has failed; the message has the end of the worker's log.
            UnavailableError: the worker has not begun in time.
            MisuseError: no process of the stack has such a job.
        """
        member = self._members.with_job(job) if service is None else self._member(service)
        async with connect_redis(self.redis_url, timeout_seconds=_REDIS_SECONDS) as redis:
            record = JobRecord(redis, service=member.service_name, job=job)
            last = await record.run_now(take_seconds=take_seconds)
        if last.outcome != "done":
            tail = self.log_tail(member.name, lines=TAIL_LINES)
            raise AssertionError(f"{job} has {last.outcome} ({last.error}); {member.name}:\n{tail}")

    # ── clients ──────────────────────────────────────────────────────────────────────────────────

    def http(self, name: str) -> httpx.AsyncClient:
        """Return an HTTP client with the base URL of a process; it is closed with the stack."""
        client = httpx.AsyncClient(base_url=self.url(name), timeout=self._start_seconds)
        self._entered().resources.push_async_callback(client.aclose)
        return client

    async def postgres_client(self, service: str = TESTS) -> PostgresDataClient:
        """Return a client of the PostgreSQL data service, or of the fake in its place; it is closed with the stack.

        Args:
            service: the name of the caller, with the grants that the data service gives to it: a service of the stack,
                or one of `callers`.
        """
        url, authorization = self._data_service(PostgresSettings, service)
        client = PostgresDataClient(url, service=service, authorization=authorization)
        return await self._entered().resources.enter_async_context(client)

    async def mongo_client(self, service: str = TESTS) -> MongoDataClient:
        """Return a client of the MongoDB data service, with the argument of `postgres_client`."""
        url, authorization = self._data_service(MongoSettings, service)
        client = MongoDataClient(url, service=service, authorization=authorization)
        return await self._entered().resources.enter_async_context(client)

    async def publisher(self) -> RobustPublisher:
        """Return a publisher to the broker of the stack; it is closed with the stack."""
        opened = self._entered()
        return await opened.resources.enter_async_context(RobustPublisher(self.rabbitmq_url, service=TESTS))

    async def collect(self, *kinds: type[Message]) -> CollectedEvents:
        """Collect the events and commands of some types from now to the end of the stack."""
        return await self._entered().resources.enter_async_context(collect_events(self.rabbitmq_url, *kinds))

    @property
    def redis_url(self) -> str:
        """The URL of the Redis of the stack.

        Raises:
            MisuseError: no process of the stack needs one, and none was given.
        """
        url = self._entered().addresses.redis
        if url is None:
            raise MisuseError("no process of this stack uses Redis; give redis=URL")
        return url

    @property
    def postgres_service_url(self) -> str:
        """The base URL of the PostgreSQL data service, or of the fake in its place.

        Raises:
            MisuseError: the stack has none.
        """
        return self._data_url(PostgresSettings)[0]

    @property
    def mongo_service_url(self) -> str:
        """The base URL of the MongoDB data service, or of the fake in its place.

        Raises:
            MisuseError: the stack has none.
        """
        return self._data_url(MongoSettings)[0]

    @property
    def rabbitmq_url(self) -> str:
        """The URL of the broker.

        Raises:
            MisuseError: no process of the stack needs one, and none was given.
        """
        url = self._entered().addresses.rabbitmq
        if url is None:
            raise MisuseError("no process of this stack uses RabbitMQ; give rabbitmq=URL")
        return url

    # ── waiting and logs ─────────────────────────────────────────────────────────────────────────

    @overload
    async def until[T](
        self, look: Callable[[], Awaitable[T | None]], what: str, *, timeout_seconds: float = 30
    ) -> T: ...

    @overload
    async def until[T](
        self, look: Callable[[], T | None], what: str, *, timeout_seconds: float = 30
    ) -> T: ...

    async def until(self, look: Callable[[], Any], what: str, *, timeout_seconds: float = 30) -> Any:
        """Call a function until it returns something true, and return that, as `hybridkit.testing.until` does.

        Args:
            look: a function, async or not, without effects.
            what: the thing that is waited for, in the words of the error.
            timeout_seconds: the longest time to wait.

        Raises:
            TimeoutError: nothing true was returned in that time; the message has the ends of all logs.
        """
        try:
            return await until(look, what, timeout_seconds=timeout_seconds)
        except TimeoutError as error:
            tails = "\n\n".join(f"{name}:\n{self.log_tail(name, lines=TAIL_LINES)}" for name in self.names)
            raise TimeoutError(f"{error}; the logs end with\n\n{tails}") from None

    def check_running(self) -> None:
        """Check that no process has ended by itself.

        Raises:
            ServerStartError: one has; the message has its exit code and the end of its log.
        """
        self._entered().supervisor.check_running()

    def logs(self, request_id: str) -> list[LogLine]:
        """Return the lines of all processes about one request, in the order of time."""
        return merge_logs(self._entered().supervisor.logs, request_id=request_id)

    def log_tail(self, name: str, *, lines: int = 20) -> str:
        """Return the last lines of a process's log, in a form for people."""
        return self._entered().supervisor.log_tail(self._member(name).name, lines=lines)

    def errors(self) -> list[LogLine]:
        """Return the lines of level error and critical that were logged, without the expected ones."""
        lines = error_lines(self._entered().supervisor.logs)
        return [line for line in lines if not any(each.search(str(line)) for each in self._expected)]

    def expect_errors(self, pattern: str) -> None:
        """Leave logged errors that match a regular expression out of `errors` and of what `strict` raises."""
        self._expected.append(re.compile(pattern))

    # ── start ────────────────────────────────────────────────────────────────────────────────────

    async def _open(self, resources: AsyncExitStack) -> _Open:
        """Start the fakes and servers that the processes need."""
        directory = self._log_directory
        if directory is None:
            scratch = tempfile.TemporaryDirectory(prefix="hybridkit-stack-", ignore_cleanup_errors=True)
            directory = Path(resources.enter_context(scratch))
        addresses = await self._open_servers(resources)
        supervisor = await resources.enter_async_context(Supervisor(directory))
        return _Open(supervisor, addresses, AsyncExitStack())

    async def _open_servers(self, resources: AsyncExitStack) -> Addresses:
        redis, rabbitmq = self._redis, self._rabbitmq
        if redis is None and "redis" in self._members.servers:
            redis = await resources.enter_async_context(_own_redis())
        if rabbitmq is None and "rabbitmq" in self._members.servers:
            self.broker = await resources.enter_async_context(DevelopmentBroker())
            rabbitmq = self.broker.url
        if self._members.have_bot:
            await resources.enter_async_context(self.telegram)
        return Addresses(
            redis=redis,
            rabbitmq=rabbitmq,
            postgres=self._postgres if isinstance(self._postgres, str) else None,
            mongo=self._mongo if isinstance(self._mongo, str) else None,
            fake_postgres_service=await _served(self._postgres, resources),
            fake_mongo_service=await _served(self._mongo, resources),
            telegram=self.telegram.url,
            telegram_token=self.telegram.token,
        )

    def _service(self, member: Member, addresses: Addresses) -> Service:
        return self._members.service(member, addresses, start_seconds=self._start_seconds)

    # ── while it runs ────────────────────────────────────────────────────────────────────────────

    def _forget(self) -> None:
        self._opened = None

    def _entered(self) -> _Open:
        if self._opened is None:
            raise MisuseError("Stack is an async context manager: use it inside `async with`")
        return self._opened

    def _member(self, name: str) -> Member:
        if name not in self._members.by_name:
            raise MisuseError(f"the stack has no process {name!r}, only {', '.join(self.names)}")
        return self._members.by_name[name]

    def _data_service(
        self, kind: type[PostgresSettings | MongoSettings], caller: str
    ) -> tuple[str, Callable[[], str] | None]:
        url, member = self._data_url(kind)
        if member is None:
            return url, None
        if caller not in self._members.keys:
            raise MisuseError(
                f"{member.name} does not know {caller!r}; name it in callers=, or use one of"
                f" {', '.join(self._members.keys)}"
            )
        from hybridkit.security import ServiceTokenIssuer  # noqa: PLC0415 - an extra of its own

        issuer = ServiceTokenIssuer(caller, key=self._members.keys[caller], audience=member.service_name)
        return member.url, issuer.header

    def _data_url(self, kind: type[PostgresSettings | MongoSettings]) -> tuple[str, Member | None]:
        addresses, member = self._entered().addresses, self._members.data_service(kind)
        if member is not None:
            return member.url, member
        is_postgres = kind is PostgresSettings
        fake = addresses.fake_postgres_service if is_postgres else addresses.fake_mongo_service
        if fake is None:
            raise MisuseError(f"the stack has no data service with {kind.__name__}")
        return fake, None

    def _unexpected_codes(self, codes: dict[str, int]) -> list[str]:
        return [
            f"{name} ended with exit code {code}"
            for name, code in codes.items()
            if code and name not in self._ended_by_test
        ]


@asynccontextmanager
async def _own_redis() -> AsyncGenerator[str]:
    servers = await asyncio.to_thread(LocalServers().__enter__)
    try:
        yield (await asyncio.to_thread(servers.start, "redis", private=True)).url
    finally:
        await asyncio.to_thread(servers.close)


async def _served(service: FakeDataService | str | None, resources: AsyncExitStack) -> str | None:
    if not isinstance(service, FakeDataService):
        return None
    return await resources.enter_async_context(service.serve())
