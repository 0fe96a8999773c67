"""The limit that the settings put on all routes of an application, for each caller."""

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from hybridkit._asgi_types import Scope
from hybridkit._header_fields import Fields
from hybridkit.adapters.fastapi import create_app, rate_limited
from hybridkit.coordination import Rate
from hybridkit.errors import SettingsError, UnauthenticatedError
from hybridkit.security import Principal, Security, require
from hybridkit.settings import EdgeSettings, RedisSettings, SecretUrl
from tests.helpers.apis import problem, serving


class OneName:
    """Takes the token `ann`, and no other."""

    schemes: Mapping[str, Mapping[str, Any]] = {"names": {"type": "http", "scheme": "bearer"}}

    async def authenticate(self, scope: Scope) -> Principal | None:
        if Fields(scope["headers"]).single("authorization") == "Bearer ann":
            return Principal(id="ann")
        raise UnauthenticatedError("no such name")


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


class LimitedSettings(EdgeSettings, RedisSettings):
    service_name: str = "limited"


@pytest.fixture
def limited_settings(redis_url: str) -> LimitedSettings:
    return LimitedSettings(environment="test", redis_url=SecretUrl(redis_url), rate_limit="60/hour;burst=2")


def counting_app(**options: Any) -> FastAPI:
    app = create_app(LimitedSettings, title="Limited", **options)

    @app.get("/a")
    @app.get("/b")
    async def read() -> str:
        return "read"

    return app


async def test_the_settings_limit_the_requests_of_each_caller_over_all_routes(
    limited_settings: LimitedSettings,
) -> None:
    """Unknown paths count, probes don't; another address has its own count, and a start without it none."""
    app = counting_app()
    app.state.settings = limited_settings
    async with serving(app) as client:
        statuses = [
            (await client.get(path)).status_code for path in ("/a", "/health", "/nowhere", "/ready", "/b")
        ]
        refused = await client.get("/nowhere")
        elsewhere = httpx.ASGITransport(app, client=("198.51.100.9", 1))
        async with httpx.AsyncClient(transport=elsewhere, base_url="http://test") as other:
            assert (await other.get("/a")).status_code == 200
    assert statuses == [200, 200, 404, 200, 429]
    assert problem(refused) == (429, "RATE_LIMITED")
    assert refused.headers["ratelimit-policy"] == '"requests";q=60;w=3600'
    assert int(refused.headers["retry-after"]) > 0
    app.state.settings = limited_settings.model_copy(update={"rate_limit": None})
    async with serving(app) as client:
        answers = [await client.get("/a") for _ in range(4)]
    assert {answer.status_code for answer in answers} == {200}
    assert "ratelimit" not in answers[0].headers


async def test_a_caller_gets_no_new_count_by_addresses_that_it_makes_up(
    limited_settings: LimitedSettings,
) -> None:
    """Neither alone nor through a trusted proxy, which appends the address that it sees."""
    proxied = limited_settings.model_copy(update={"trusted_proxies": (ip_network("127.0.0.1"),)})
    for settings, suffix in ((limited_settings, ""), (proxied, ", 203.0.113.7")):
        app = counting_app()
        app.state.settings = settings
        async with serving(app) as client:
            statuses = [
                (
                    await client.get("/a", headers={"x-forwarded-for": f"198.51.100.{number}{suffix}"})
                ).status_code
                for number in range(4)
            ]
        assert statuses == [200, 200, 429, 429]


async def test_a_route_has_its_own_limit_beside_that_of_the_settings(
    limited_settings: LimitedSettings,
) -> None:
    """The response tells both, and the one that is reached first refuses."""
    app = counting_app()

    @app.get("/once", dependencies=[rate_limited("once", per_caller=Rate.parse("60/hour", burst=1))])
    async def once() -> str:
        return "once"

    app.state.settings = limited_settings
    async with serving(app) as client:
        first, second = await client.get("/once"), await client.get("/once")
    assert (first.status_code, second.status_code) == (200, 429)
    assert first.headers.get_list("ratelimit-policy") == ['"requests";q=60;w=3600', '"once";q=60;w=3600']


async def test_who_tries_bad_credentials_is_counted_by_its_address(limited_settings: LimitedSettings) -> None:
    """Good ones count for their user, and are let through while the address is not."""
    app = create_app(LimitedSettings, title="Limited", security=Security(OneName()))

    @app.get("/a", dependencies=[require()])
    async def read() -> str:
        return "read"

    app.state.settings = limited_settings
    async with serving(app) as client:
        tries = [await client.get("/a", headers=bearer(f"bad{number}")) for number in range(3)]
        good = await client.get("/a", headers=bearer("ann"))
    assert [answer.status_code for answer in tries] == [401, 401, 429]
    assert good.status_code == 200


@pytest.mark.parametrize(
    ("rate", "told"),
    [("many", "RATE_LIMIT: a rate is a number per"), ("0/minute", "RATE_LIMIT: a rate lets at least 1")],
)
async def test_a_rate_that_means_nothing_ends_the_start(
    limited_settings: LimitedSettings, rate: str, told: str
) -> None:
    """The report names the setting."""
    app = counting_app()
    app.state.settings = limited_settings.model_copy(update={"rate_limit": rate})
    with pytest.raises(SettingsError, match=told):
        async with serving(app):
            pass


async def test_a_limit_needs_redis() -> None:
    """Without it there is nothing to count in over all replicas."""
    app = create_app(EdgeSettings, title="Limited")
    app.state.settings = EdgeSettings(service_name="limited", environment="test", rate_limit="1/minute")
    with pytest.raises(SettingsError, match="RATE_LIMIT: needs Redis"):
        async with serving(app):
            pass
