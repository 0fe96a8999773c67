"""A secret planted in every input of an API comes out of none of its outputs."""

import json
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Header
from pydantic import BaseModel, SecretStr

from hybridkit.adapters.fastapi import create_app
from hybridkit.observability import configure_logging, get_logger, render_metrics
from hybridkit.security import OPEN
from hybridkit.settings import SecretUrl, ServiceSettings
from tests.helpers.apis import serving
from tests.helpers.sentry import SentryReceiver
from tests.helpers.spans import recording

pytestmark = pytest.mark.usefixtures("restored_logging")

CANARY = "c4n4ry-Zq8vXw2LmN5t-Rk3jHb7PdS9x"
PARTNER = f"https://user:{CANARY}@partner.example/?key={CANARY}"


class Settings(ServiceSettings):
    service_name: str = "users_api"
    environment: Any = "test"
    log_format: Any = "json"
    log_level: Any = "DEBUG"
    management_port: int = 0
    api_key: SecretStr = SecretStr(CANARY)
    partner_url: SecretUrl = SecretUrl(PARTNER)


class Card(BaseModel):
    number: int
    holder: str


def application() -> FastAPI:
    app = create_app(Settings, title="Canary", security=OPEN)
    log = get_logger("canary")

    @app.post("/cards")
    async def add(card: Card, x_amount: Annotated[int, Header()] = 0) -> int:
        log.info("added", settings=app.state.settings, url=app.state.settings.partner_url, key=CANARY)
        return card.number + x_amount

    @app.post("/broken")
    async def broken() -> None:
        cause = ConnectionError(f"no way to {PARTNER}, Authorization: Bearer {CANARY}")
        log.error("failed", headers={"cookie": CANARY}, exc_info=cause)
        raise RuntimeError(f"cookie: {CANARY}") from cause

    return app


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/cards", {"number": 1, "holder": CANARY}, 200),
        ("/cards", {"number": CANARY, "holder": CANARY}, 422),
        ("/cards", CANARY, 422),
        ("/broken", {"holder": CANARY}, 500),
        ("/nowhere", {"holder": CANARY}, 404),
    ],
)
async def test_what_goes_in_secret_stays_in(
    path: str,
    body: object,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """Query, headers, cookies, body, environment, settings, URLs and errors; logs, spans, reports, metrics, answers."""
    monkeypatch.setenv("PLANTED", CANARY)
    app = application()
    with SentryReceiver() as sentry, recording(monkeypatch) as exporter:
        app.state.settings = Settings(sentry_dsn=SecretUrl(sentry.dsn))
        configure_logging(app.state.settings)
        async with serving(app) as client:
            answer = await client.post(
                f"{path}?token={CANARY}&q={CANARY}",
                json=body,
                headers={
                    "authorization": f"Bearer {CANARY}",
                    "cookie": f"session={CANARY}",
                    "x-amount": "1",
                    "x-api-key": CANARY,
                },
            )
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    logged = capfdbinary.readouterr()
    outputs: dict[str, bytes] = {
        "standard output": logged.out,
        "standard error": logged.err,
        "spans": "\n".join(spans).encode(),
        "reports": b"\n".join(sentry.everything),
        "metrics": render_metrics()[0],
        "answer": answer.content + json.dumps(dict(answer.headers)).encode(),
    }
    assert answer.status_code == status
    assert spans
    assert b"POST" in logged.out
    assert bool(sentry.everything) == (answer.status_code == 500)
    planted = CANARY.encode()
    assert [name for name, output in outputs.items() if planted in output] == []
