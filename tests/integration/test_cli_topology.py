"""`hybridkit topology` against a real RabbitMQ: what it prints, with which code it ends, and that Ctrl-C ends it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aio_pika
import pytest
from typer.testing import CliRunner, Result

from hybridkit._cli._app import app
from hybridkit.testing import plugin

pytestmark = pytest.mark.real_server

ROOT = Path(__file__).resolve().parents[2]
APP = "examples.worker_service.application"
COMMAND = [sys.executable, "-c", "from hybridkit._cli import main; main()", "topology"]


def topology(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["topology", *arguments, "--app", APP], env={"RABBITMQ_URL": url})


async def declare_otherwise(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(
            "worker_service.analytics.dlq", durable=True, arguments={"x-queue-type": "quorum"}
        )


async def bind(url: str, queue: str, event_type: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await (await channel.get_queue(queue)).bind("hk.events", event_type)


def test_planned_applied_and_verified(rabbitmq_url: str) -> None:
    """The plan's missing parts are declared, and verifying ends with code 0."""
    planned = topology(rabbitmq_url, "plan")
    assert planned.exit_code == 1
    assert re.search(r"^\+  queue +worker_service\.analytics +missing$", planned.output, re.MULTILINE)
    assert re.search(r"^RabbitMQ \S+: 41 missing, 38 unknown\nnote: ", planned.output, re.MULTILINE)
    applied = topology(rabbitmq_url, "apply")
    assert applied.exit_code == 0
    assert applied.output.endswith("41 declared, 0 were present\n")
    verified = topology(rabbitmq_url, "verify")
    assert (verified.exit_code, len(verified.output.splitlines())) == (0, 1)
    assert topology(rabbitmq_url, "plan").exit_code == 0
    assert topology(rabbitmq_url, "apply").output.endswith(" 0 declared, 41 were present\n")


def test_the_queues_of_a_bot_are_planned_applied_and_verified_by_its_name(rabbitmq_url: str) -> None:
    """`--bot` stands beside `--app` or alone; one of them is needed, and the name of a service."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["topology", *arguments], env={"RABBITMQ_URL": rabbitmq_url})

    planned = run("plan", "--bot", "shop_bot")
    assert planned.exit_code == 1
    assert re.search(r"^\+  queue +shop_bot\.updates\.q15\.dlq +missing$", planned.output, re.MULTILINE)
    assert run("apply", "--bot", "shop_bot", "--app", APP).exit_code == 0
    assert run("verify", "--bot", "shop_bot").exit_code == 0
    assert topology(rabbitmq_url, "verify").exit_code == 0
    assert "neither is there a --bot" in run("plan").output
    assert "snake_case" in run("plan", "--bot", "Shop Bot").output


def test_a_conflict_is_shown_with_both_values(rabbitmq_url: str) -> None:
    """Applying declares nothing at all."""
    asyncio.run(declare_otherwise(rabbitmq_url))
    conflict = r"^! +queue +\S+\.dlq +conflicting +x-delivery-limit is not set, declared 1000000000"
    for command in ("plan", "verify"):
        done = topology(rabbitmq_url, command)
        assert done.exit_code == 1
        assert re.search(conflict, done.output, re.MULTILINE), done.output
    done = topology(rabbitmq_url, "apply")
    assert done.exit_code == 1
    assert done.output.startswith(
        "error: nothing was declared, as the broker has something otherwise:\n  - queue"
    )


def test_what_nobody_declared_is_shown_and_no_failure(
    rabbitmq_url: str, request: pytest.FixtureRequest
) -> None:
    """A stray binding leaves the exit code of plan and verify at 0."""
    topology(rabbitmq_url, "apply")
    asyncio.run(bind(rabbitmq_url, "worker_service.analytics", "user.deleted"))
    management_url = str(plugin._find(request, "rabbitmq").management_url)
    for command in ("plan", "verify"):
        done = topology(rabbitmq_url, command, "--management-url", management_url)
        assert done.exit_code == 0
        assert re.match(r"\?  binding  hk\.events -> \S+ \(user\.deleted\)  extra  no handler", done.output)


def test_json_is_for_programs(rabbitmq_url: str, request: pytest.FixtureRequest) -> None:
    """One document is printed, also with code 1; with the management URL nothing is unknown."""
    management_url = str(plugin._find(request, "rabbitmq").management_url)
    planned = json.loads(topology(rabbitmq_url, "plan", "--json").output)
    assert not planned["is_clean"]
    assert planned["broker"]["product"] == "RabbitMQ"
    assert planned["findings"][0] == {
        "kind": "exchange",
        "name": "hk.unrouted",
        "state": "missing",
        "differences": [],
        "detail": "",
    }
    applied = json.loads(topology(rabbitmq_url, "apply", "--json").output)
    assert len(applied["declared"]) == 41
    verified = topology(rabbitmq_url, "verify", "--json", "--management-url", management_url)
    assert {each["state"] for each in json.loads(verified.output)["findings"]} == {"present"}


def test_the_process_ends_with_the_code(rabbitmq_url: str) -> None:
    """The installed command ends with 1 before, and with 0 after the topology is applied."""
    environment = {**os.environ, "RABBITMQ_URL": rabbitmq_url}
    done = [
        subprocess.run(
            [*COMMAND, command, "--app", APP],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for command in ("verify", "apply", "verify")
    ]
    assert [each.returncode for each in done] == [1, 0, 0]
    assert [each.stderr for each in done] == ["", "", ""]


def test_ctrl_c_ends_it_without_a_stack() -> None:
    """This holds while the command waits for a broker that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"amqp://127.0.0.1:{silent.getsockname()[1]}/"
        command = [*COMMAND, "plan", "--app", APP, "--url", url]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                with silent.accept()[0]:
                    process.send_signal(signal.SIGINT)
                    printed = process.communicate(timeout=60)
            finally:
                process.kill()
    assert (process.returncode, printed) == (130, ("", ""))
