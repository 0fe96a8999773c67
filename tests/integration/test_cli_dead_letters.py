"""`hybridkit dlq` against a real RabbitMQ: what it prints, with which code it ends, and what it refuses."""

import asyncio
import functools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import aio_pika
import pytest
from typer.testing import CliRunner, Result

from hybridkit._cli import _dead_letters as module
from hybridkit._cli._app import app
from hybridkit.messaging import apply_topology, topology_of
from hybridkit.testing import plugin

pytestmark = pytest.mark.real_server

APP = "examples.worker_service.application"
QUEUE = "worker_service.analytics.dlq"
HEADERS: dict[str, Any] = {
    "hk_queue": "worker_service.analytics",
    "hk_reason": "exhausted",
    "hk_error_type": "builtins.OSError",
    "hk_error": "no bank",
    "hk_stack": "Traceback\n  OSError: no bank\x1b[31m",
    "hk_attempt": 8,
    "hk_first_failed_at": "2026-01-01T00:00:00Z",
    "hk_failed_at": "2026-01-01T12:00:00Z",
    "hk_event_id": "1",
    "x-user-id": "user-7",
    "odd": [datetime(2026, 1, 1, tzinfo=UTC), {"a": bytearray(b"b")}],
}

STRANGE: dict[str, Any] = {
    "hk_failed_at": "9999-12-31T23:59:59-12:00",  # of no year in UTC
    "deep": functools.reduce(lambda inner, _: {"a": inner}, range(300), cast("Any", None)),
}
"""What somebody may write who is not us: it is shown, or left out, and hides nothing else."""

type Dlq = Callable[..., Result]


@pytest.fixture
def dlq(rabbitmq_url: str) -> Dlq:
    def call(*arguments: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(app, ["dlq", *arguments], input=answer, env={"RABBITMQ_URL": rabbitmq_url})

    return call


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is somebody to ask."""
    monkeypatch.setattr(module, "is_terminal", lambda: True)


@pytest.fixture(autouse=True)
def filled(rabbitmq_url: str) -> None:
    """The queues of the example's worker, with three dead letters."""

    async def fill() -> None:
        from examples.worker_service.application import analytics

        await apply_topology(topology_of([analytics]), rabbitmq_url)
        async with await aio_pika.connect(rabbitmq_url) as connection:
            channel = await connection.channel()
            for body, event_type, headers in (
                (b"{}", "user.created", HEADERS),
                (b"{}", "user.created", HEADERS),
                (b"x" * 2000, "other", HEADERS | STRANGE),
            ):
                message = aio_pika.Message(body, headers=headers, type=event_type, delivery_mode=2)
                await channel.default_exchange.publish(message, routing_key=QUEUE)

    asyncio.run(fill())


def listed(dlq: Dlq, *arguments: str) -> list[dict[str, Any]]:
    return list(json.loads(dlq("list", "--json", *arguments).stdout))


def left(dlq: Dlq) -> int:
    return int(listed(dlq, QUEUE)[0]["messages"])


# ── list ─────────────────────────────────────────────────────────────────────────────────────────


def test_dead_letters_are_listed_without_who_they_are_about(dlq: Dlq) -> None:
    """The counts have type, reason and error, and no keys or bodies."""
    done = dlq("list", QUEUE, "hk.unrouted")
    assert done.exit_code == 0
    line = r"^worker_service\.analytics\.dlq +2 +user\.created +exhausted +OSError +2026-01-01T00:00:00Z +\S+ +1$"
    assert re.search(line, done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.splitlines()[0].split()[:3] == ["QUEUE", "COUNT", "TYPE"]
    assert done.stdout.endswith("hk.unrouted is empty\n")
    assert "user-7" not in done.stdout
    assert dlq("list", "hk.unrouted").stdout == "hk.unrouted is empty\n"


def test_the_queues_are_the_applications_or_all(dlq: Dlq, request: pytest.FixtureRequest) -> None:
    """`--app` gives the queues of its consumers, and `--management-url` all."""
    management_url = str(plugin._find(request, "rabbitmq").management_url)
    for where in (["--app", APP], ["--management-url", management_url]):
        assert {each["queue"]: each["messages"] for each in listed(dlq, *where)} == {
            QUEUE: 3,
            "hk.unrouted": 0,
        }


def test_without_a_queue_it_says_what_is_missing(dlq: Dlq) -> None:
    """The exit code is 2."""
    done = dlq("list")
    assert done.exit_code == 2
    assert "AMQP can't list queues" in done.stderr


def test_one_queue_that_can_not_be_read_does_not_hide_the_others(dlq: Dlq) -> None:
    """The exit code is 1, and the others are listed."""
    done = dlq("list", "gone.dlq", QUEUE)
    assert done.exit_code == 1
    assert "error: there is no queue 'gone.dlq'" in done.stderr
    assert "user.created" in done.stdout
    assert [each.get("error", "")[:17] for each in listed(dlq, QUEUE, "gone.dlq")] == [
        "",
        "there is no queue",
    ]


def test_what_was_not_counted_is_said(dlq: Dlq, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more messages than are read at once, the output says how many were."""
    monkeypatch.setattr("hybridkit.messaging._dead_letters._reader.WINDOW_MESSAGES", 2)
    assert f"{QUEUE}: the first 2 of 3 are counted" in dlq("list", QUEUE).stdout
    done = dlq("redrive", QUEUE, "--type", "none", "--dry-run")
    assert "only the first 2 were looked at" in done.stderr


# ── peek ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_is_shown_with_its_reason(dlq: Dlq) -> None:
    """Characters that a terminal would interpret are replaced."""
    done = dlq("peek", QUEUE, "--limit", "1")
    assert done.exit_code == 0
    assert done.stdout.startswith("#1  user.created  exhausted\n")
    for line in (
        r"event id +1$",
        r"from +worker_service\.analytics$",
        r"error +builtins\.OSError: no bank$",
        r"attempts +8, redriven 0 times$",
        r"failed +first 2026-01-01T00:00:00Z, last 2026-01-01T12:00:00Z$",
        r"x-user-id +user-7$",
        r"body +\{\}$",
        r"  OSError: no bank\ufffd\[31m$",
    ):
        assert re.search(line, done.stdout, re.MULTILINE), done.stdout
    assert "\x1b" not in done.stdout


def test_filters_choose_what_is_shown(dlq: Dlq) -> None:
    """Type, error, reason and id can be combined."""

    def positions(*arguments: str) -> list[int]:
        return [each["position"] for each in json.loads(dlq("peek", QUEUE, "--json", *arguments).stdout)]

    assert positions() == [1, 2, 3]
    assert positions("--type", "other") == [3]
    assert positions("--error", "OSError", "--reason", "exhausted", "--event-id", "1") == [1, 2, 3]
    assert positions("--since", "2026-01-01T12:00:00Z", "--until", "2026-01-01T12:00:01") == [1, 2]
    assert positions("--until", "2026-01-01") == []
    assert dlq("peek", QUEUE, "--type", "none").stdout == "nothing fits\n"
    wrong = dlq("peek", QUEUE, "--since", "yesterday")
    assert wrong.exit_code == 2
    assert "not a time like" in wrong.stderr


def test_a_message_is_a_document_for_programs(dlq: Dlq) -> None:
    """Any header can be shown, and a long body is cut, with its length."""
    [letter] = json.loads(dlq("peek", QUEUE, "--json", "--type", "other").stdout)
    assert letter["headers"]["odd"][0].startswith("2026-01-01T00:00:00")
    assert (letter["body_bytes"], letter["attempts"], letter["target"]) == (
        2000,
        8,
        "worker_service.analytics",
    )
    assert re.search(
        r"^    body +x{1000}… \(2000 bytes\)$", dlq("peek", QUEUE, "--type", "other").stdout, re.MULTILINE
    )


def test_a_strangers_message_is_shown_as_far_as_it_goes(dlq: Dlq, rabbitmq_url: str) -> None:
    """A message that hybridkit has not published is shown with its headers and body."""

    async def publish() -> None:
        async with await aio_pika.connect(rabbitmq_url) as connection:
            message = aio_pika.Message(b"hello", headers={"long": "x" * 2000})
            await (await connection.channel()).default_exchange.publish(message, routing_key="hk.unrouted")

    asyncio.run(publish())
    done = dlq("peek", "hk.unrouted")
    assert done.stdout.startswith("#1  -  -\n    event id  -\n    from      -\n    error     -\n")
    assert re.search(r"^    long +x{1000}…\n    body +hello\n\Z", done.stdout, re.MULTILINE)
    failed = dlq("redrive", "hk.unrouted", "--yes")
    assert "error: 1 message not sent: nothing says which queue it came from" in failed.stderr


# ── redrive ──────────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_needs_no_yes(dlq: Dlq) -> None:
    """It says how many messages would be sent back, and sends none."""
    done = dlq("redrive", QUEUE, "--type", "user.created", "--dry-run")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "2 messages of 3 would be sent back")
    assert left(dlq) == 3


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_where_nobody_can_be_asked_nothing_is_sent(dlq: Dlq, arguments: list[str]) -> None:
    """Without a terminal `--yes` is required."""
    done = dlq("redrive", QUEUE, *arguments)
    assert done.exit_code == 2
    assert "add --yes" in done.stderr
    assert left(dlq) == 3


def test_with_yes_it_is_sent(dlq: Dlq) -> None:
    """`--limit` ends the redrive early, and the next one sends the rest."""
    done = dlq("redrive", QUEUE, "--yes", "--limit", "1", "--rate", "100")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "1 message of 3 sent back, 2 left")
    document = json.loads(dlq("redrive", QUEUE, "--yes", "--json").stdout)
    assert (document["redriven"], document["left"], document["failed"]) == (2, 0, {})


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_it_shows_what_it_would_do_and_asks(dlq: Dlq) -> None:
    """Nothing is sent after a no."""
    no = dlq("redrive", QUEUE, "--type", "other", answer="n\n")
    assert no.exit_code == 1
    assert "Send 1 message back?" in no.output
    assert left(dlq) == 3
    yes = dlq("redrive", QUEUE, "--type", "other", answer="y\n")
    assert yes.exit_code == 0
    assert "1 sent back, 0 failed" in yes.stderr
    assert "1 message of 3 sent back, 2 left" in yes.stdout
    assert "0 messages of 2 would be" in dlq("redrive", QUEUE, "--type", "other").stdout


def test_what_can_not_be_sent_is_an_error(dlq: Dlq, rabbitmq_url: str) -> None:
    """Without the consumer's queue the messages stay, and the exit code is 1."""

    async def delete() -> None:
        async with await aio_pika.connect(rabbitmq_url) as connection:
            await (await connection.channel()).queue_delete("worker_service.analytics")

    asyncio.run(delete())
    done = dlq("redrive", QUEUE, "--yes")
    assert done.exit_code == 1
    assert "error: 2 messages not sent: no queue wants user.created" in done.stderr
    assert left(dlq) == 3
