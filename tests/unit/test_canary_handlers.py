"""A secret in an event's payload or in a message to a bot comes out of no log, span, report, metric or answer."""

from typing import Any

import pytest
from aiogram import Dispatcher
from aiogram.types import Message
from pydantic import SecretStr

from hybridkit.observability import configure_error_reports, configure_logging, get_logger, render_metrics
from hybridkit.settings import SecretUrl, ServiceSettings
from tests.helpers.bots import ADA, World, world
from tests.helpers.consuming import Happened, Steps, delivery, envelope, processor
from tests.helpers.sentry import SentryReceiver
from tests.helpers.spans import recording

__all__ = ["world"]

pytestmark = pytest.mark.usefixtures("restored_logging")

CANARY = "c4n4ry-Zq8vXw2LmN5t-Rk3jHb7PdS9x"


class Settings(ServiceSettings):
    service_name: str = "worker_service"
    environment: Any = "test"
    log_format: Any = "json"
    log_level: Any = "DEBUG"
    api_key: SecretStr = SecretStr(CANARY)


class Outputs:
    """What a process tells about its work."""

    def __init__(self, sentry: SentryReceiver, spans: Any) -> None:
        self._sentry, self._spans = sentry, spans

    def leaks(self, logged: Any) -> list[str]:
        """Return the outputs that have the secret; each of them has something."""
        outputs = {
            "standard output": logged.out,
            "standard error": logged.err,
            "spans": "\n".join(span.to_json() for span in self._spans.get_finished_spans()).encode(),
            "reports": b"\n".join(self._sentry.everything),
            "metrics": render_metrics()[0],
        }
        assert outputs["standard output"]
        assert outputs["reports"]
        return [name for name, output in outputs.items() if CANARY.encode() in output]


async def test_the_payload_of_an_event_that_fails_stays_in_its_message(
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """It is dead-lettered with its body, and neither its data nor the headers of a call are told elsewhere."""

    async def fail(event: Happened) -> None:
        holder = event.model_dump()
        get_logger("canary").info("adding", card=event.number, authorization=CANARY)
        raise RuntimeError(f"refused: Authorization: Bearer {CANARY}") from KeyError(len(holder))

    with SentryReceiver() as sentry, recording(monkeypatch) as exporter:
        settings = Settings(sentry_dsn=SecretUrl(sentry.dsn))
        configure_logging(settings)
        reports = configure_error_reports(settings)
        body = envelope(Happened(number=1)).replace(b'"number":1', f'"number":1,"note":"{CANARY}"'.encode())
        await processor(steps, fail).process(delivery(steps, body))
        await reports.aclose(timeout_seconds=60)
        found = Outputs(sentry, exporter).leaks(capfdbinary.readouterr())
    assert CANARY.encode() in body
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert found == []


async def test_what_a_person_writes_to_a_bot_stays_in_its_update(
    world: World, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The person is answered, and a failed handler is reported, without a word of the message."""
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def fail(message: Message) -> None:
        raise RuntimeError(f"cookie: {CANARY}") from LookupError(len(message.text or ""))

    with SentryReceiver() as sentry, recording(monkeypatch) as exporter:
        settings = Settings(sentry_dsn=SecretUrl(sentry.dsn))
        configure_logging(settings)
        reports = configure_error_reports(settings)
        async with world.polling(dispatcher):
            world.telegram.push_text(f"my password is {CANARY}", from_user=ADA)
            [answer] = await world.telegram.wait_for_messages(1)
        await reports.aclose(timeout_seconds=60)
        found = Outputs(sentry, exporter).leaks(capfdbinary.readouterr())
    assert CANARY not in answer.text
    assert found == []
