"""An API is started for a test with settings and callers of the test's own."""

import httpx
import pytest

from hybridkit.adapters.fastapi import create_app
from hybridkit.errors import MisuseError
from hybridkit.security import CurrentPrincipal, Principal, Security, require
from hybridkit.settings import ServiceSettings
from hybridkit.testing import running_api, signed_in


class Nobody:
    """An authenticator that knows nobody."""

    @property
    def schemes(self) -> dict[str, dict[str, str]]:
        return {"none": {"type": "http", "scheme": "bearer"}}

    async def authenticate(self, scope: object) -> Principal | None:
        return None


app = create_app(ServiceSettings, title="Shop", security=Security(Nobody()))


@app.get("/me", dependencies=[require(role="buyer")])
async def me(principal: CurrentPrincipal) -> str:
    return principal.id


def settings(name: str) -> ServiceSettings:
    return ServiceSettings(environment="test", service_name=name)


async def status_for(client: httpx.AsyncClient, principal: Principal | None) -> int:
    with signed_in(app, principal):
        return (await client.get("/me")).status_code


async def test_a_caller_is_signed_in_for_a_block() -> None:
    """The policies of the routes decide as ever, and afterwards the application's own authenticators."""
    async with running_api(app, settings("shop_api")) as client:
        with signed_in(app, Principal(id="ada", roles=frozenset({"buyer"}))):
            assert (await client.get("/me")).json() == "ada"
        assert await status_for(client, Principal(id="eve")) == 403
        assert await status_for(client, None) == 401
        assert (await client.get("/me")).status_code == 401


async def test_the_application_of_the_module_starts_again_with_other_settings() -> None:
    """Each block has its own."""
    for name in ("first", "second"):
        async with running_api(app, settings(name)):
            assert app.state.settings.service_name == name


async def test_nobody_is_signed_in_without_security() -> None:
    """The error says what is missing."""
    with (
        pytest.raises(MisuseError, match="no security="),
        signed_in(create_app(ServiceSettings, title="Open"), None),
    ):
        pytest.fail("there is nothing to override")
