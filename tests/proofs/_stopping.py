"""The processes of `tests.proofs.stops`: an API, a bot and a worker that note in Redis what they begin and finish.

Each imports only what its own kind needs, as the processes of an application do.
"""

import asyncio
import os
import random
import sys

from redis.asyncio import Redis

from hybridkit import Event

SECONDS = 0.3
"""The longest that one piece of work takes."""


class Work(Event, type="stops.work"):
    number: int


async def do(number: int) -> None:
    """Do one piece of work, and note its begin and its end.

    The notes go to Redis without the deadlines of a service: a note that was made and whose confirmation came too late
    would have the work run again, as it should.
    """
    async with Redis.from_url(os.environ["REDIS_URL"]) as notes:
        await notes.hincrby("begun", str(number), 1)
        await asyncio.sleep(random.uniform(0, SECONDS))
        await notes.hincrby("done", str(number), 1)


def run_api(workers: int) -> None:
    """Run an API that does what its callers ask for."""
    from hybridkit.adapters import fastapi
    from hybridkit.security import OPEN
    from hybridkit.settings import ApiSettings

    app = fastapi.create_app(ApiSettings, title="Stops", security=OPEN)

    @app.post("/work/{number}")
    async def answer(number: int, key: fastapi.IdempotencyKey) -> None:
        await do(number)

    fastapi.run_api(app, workers=workers)


def run_worker() -> None:
    """Run a worker that does what messages ask for."""
    from hybridkit.adapters import worker
    from hybridkit.messaging import RobustConsumer
    from hybridkit.settings import WorkerSettings

    consumer = RobustConsumer("stops", concurrency=16)

    @consumer.on(Work)
    async def consume(event: Work) -> None:
        await do(event.number)

    worker.run_worker(WorkerSettings, consumers=[consumer])


def run_bot() -> None:
    """Run a bot that does what people ask for."""
    from aiogram import Dispatcher
    from aiogram.types import Message

    from hybridkit.adapters import aiogram
    from hybridkit.settings import BotSettings

    dispatcher = Dispatcher()

    @dispatcher.message()
    async def reply(message: Message) -> None:
        await do(int(message.text or ""))

    aiogram.run_bot(dispatcher, BotSettings)


def main(kind: str) -> None:
    """Run one kind of process."""
    match kind:
        case "api":
            run_api(workers=1)
        case "workers":
            run_api(workers=4)
        case "worker":
            run_worker()
        case "bot":
            run_bot()
        case _:
            sys.exit(f"there is no kind {kind}")


if __name__ == "__main__":
    main(sys.argv[1])
