"""Workers that die: `python -m tests.proofs._crashing` with the addresses in the environment.

It imports everything once, and forks a worker for each line that it reads: `STEP` to kill the worker with SIGKILL at
that step of its tasks, counted from the moment at which the handling of a message begins, or `-` for one that lives
until SIGTERM. It answers each line with the worker's process id.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import AsyncExitStack
from typing import Any, override

from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.coordination import connect_redis
from hybridkit.idempotency import Begin, IdempotencyGuard
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.retry import Retry
from tests.proofs._checkout import OrderPlaced, check_out

QUEUE = "crash_proof.checkout"
LEASE_SECONDS = 1.0
RETRY = Retry.exponential(first_seconds=0.2, cap_seconds=2, attempts=50)
MAX_TAKEOVERS = 100
"""More than the deaths that one message may see here; five by default."""


class Steps:
    """Counts the steps of all tasks from the first `begin` on, and kills the process at one of them.

    A task has two steps at each await: it has begun to wait, with what it sent on its way, and it goes on.

    Args:
        deadly: the step to die at, from 1; None for none.
    """

    def __init__(self, deadly: int | None) -> None:
        self.count: int | None = None
        self._deadly = deadly

    def begin(self) -> None:
        """Start to count."""
        if self.count is None:
            self.count = 0

    def step(self) -> None:
        """Count one step."""
        if self.count is not None:
            self.count += 1
            if self.count == self._deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    def task_factory(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        """Make a task whose steps are counted."""
        return asyncio.Task(self.counted(work), loop=loop, **options)

    def counted[T](self, inner: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return a coroutine that counts each of its steps."""
        return _Counted(inner, self.step)


class _Counted[T](Coroutine[Any, Any, T]):
    def __init__(self, inner: Coroutine[Any, Any, T], step: Callable[[], None]) -> None:
        self._inner = inner
        self._step = step

    @override
    def send(self, value: Any) -> Any:
        self._step()
        waited = self._inner.send(value)
        self._step()
        return waited

    @override
    def throw(self, *error: Any) -> Any:
        self._step()
        return self._inner.throw(*error)

    @override
    def close(self) -> None:
        self._inner.close()

    @override
    def __await__(self) -> Generator[Any, Any, T]:
        return self._inner.__await__()


class CountingGuard(IdempotencyGuard):
    """A guard that begins the count with its first claim."""

    def __init__(self, *arguments: Any, steps: Steps, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._steps = steps

    @override
    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.0) -> Begin:
        self._steps.begin()
        return await super().begin(key, payload, wait_seconds=wait_seconds)


async def work(deadly: int | None) -> None:
    """Consume until SIGTERM, or until the deadly step."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    steps = Steps(deadly)
    loop.set_task_factory(steps.task_factory)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect_redis(os.environ["REDIS_URL"], timeout_seconds=5))
        guard = CountingGuard(redis, lease_seconds=LEASE_SECONDS, max_takeovers=MAX_TAKEOVERS, steps=steps)
        url = os.environ["RABBITMQ_URL"]
        publisher = await stack.enter_async_context(RobustPublisher(url, service="crash_proof"))
        connection = await stack.enter_async_context(BrokerConnection(url, name="crash_proof"))
        postgres = await stack.enter_async_context(
            PostgresDataClient(os.environ["POSTGRES_SERVICE_URL"], service="crash_proof")
        )
        mongo = await stack.enter_async_context(
            MongoDataClient(os.environ["MONGO_SERVICE_URL"], service="crash_proof")
        )
        consumer = RobustConsumer(QUEUE, concurrency=8)

        @consumer.on(OrderPlaced, retry=RETRY)
        async def handle(event: OrderPlaced) -> None:
            await check_out(event, postgres=postgres, mongo=mongo, publisher=publisher)

        await stack.enter_async_context(consumer.running(connection, publisher=publisher, guard=guard))
        await stopped.wait()


def main() -> None:
    """Fork a worker for each line of the input, until it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asyncio.run(work(None if line.strip() == "-" else int(line)))
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
