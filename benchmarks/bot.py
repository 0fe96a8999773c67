"""The CPU time that an update costs through the adapter for Aiogram, beside Aiogram's own polling.

Both sides are processes of their own on uvloop, take turns, poll the same fake Telegram, another process, and have a
handler that does nothing. Ours claims each update in Redis, so that it runs once, takes the turn of its chat and reads
the chat's state there; Aiogram's own polling promises none of that and keeps states in memory.
"""

import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from json import dumps

from benchmarks._report import Result, main
from hybridkit.dev import LocalServers, free_port

TOKEN = "4242:fake-telegram-token"  # noqa: S105  # of the fake
UPDATES = 600
CHATS = 100
ROUNDS = 5
UPDATE_GOAL = 1 / 1.5


def measure() -> Iterator[Result]:
    """All results, one after the other."""
    with LocalServers() as servers, _fake_telegram() as telegram_url:
        environment = {
            **os.environ,
            "BOT_TOKEN": TOKEN,
            "ENVIRONMENT": "test",
            "LOG_LEVEL": "WARNING",
            "MANAGEMENT_PORT": "0",
            "RABBITMQ_URL": servers.start("rabbitmq").url,
            "REDIS_URL": servers.start("redis").url,
            "SERVICE_NAME": "bench_bot",
            "TELEGRAM_API_URL": telegram_url,
        }
        found: dict[str, list[float]] = {"ours": [], "aiogram": []}
        for _ in range(ROUNDS):
            for side, microseconds in found.items():
                _push(telegram_url)
                microseconds.append(_microseconds(side, environment))
    yield Result(
        name="an update by polling",
        ours=statistics.median(found["ours"]),
        peer=statistics.median(found["aiogram"]),
        peer_name="aiogram",
        unit="us",
        goal=UPDATE_GOAL,
    )


def _microseconds(side: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "benchmarks._bot_side", side, str(UPDATES)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603 - ours
    return float(run.stderr.split()[-1])


@contextmanager
def _fake_telegram() -> Generator[str]:
    port = free_port()
    command = [sys.executable, "-m", "hybridkit.testing", "telegram", "--port", str(port), "--token", TOKEN]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own interpreter
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health").close()  # noqa: S310 - the fake's own address
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _push(telegram_url: str) -> None:
    url = f"{telegram_url}/control/updates"
    for number in range(UPDATES):
        order = {"text": "hello", "from_user": {"id": 1 + number % CHATS}}
        urllib.request.urlopen(url, data=dumps(order).encode()).close()  # noqa: S310 - the fake's


if __name__ == "__main__":
    main(__doc__ or "", measure)
