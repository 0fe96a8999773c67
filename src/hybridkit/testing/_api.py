"""An API inside the test's process, started for a test with settings and callers of its own."""

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import httpx

from hybridkit._asgi_types import Scope
from hybridkit.errors import MissingExtraError, MisuseError
from hybridkit.security import Principal, Security
from hybridkit.settings import ServiceSettings

try:
    from fastapi import FastAPI
except ModuleNotFoundError:
    raise MissingExtraError(__name__, extra="testing") from None

BASE_URL: Final = "http://api.test"


@asynccontextmanager
async def running_api(app: FastAPI, settings: ServiceSettings) -> AsyncGenerator[httpx.AsyncClient]:
    """Start an application of `create_app` in this process, and return a client of it inside the block.

    The application may be the one of its module: settings belong to one start. An error that nobody handles is
    answered with 500, as in production.

    Args:
        app: the application.
        settings: the settings of this start.
    """
    app.state.settings = settings
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=BASE_URL) as client,
    ):
        yield client


@contextmanager
def signed_in(app: FastAPI, principal: Principal | None) -> Generator[None]:
    """Let every request inside the block come from one caller, in place of the application's authenticators.

    Policies of routes stay as they are, so that a test finds out whom they let in.

    Args:
        app: an application of `create_app(security=Security(...))`.
        principal: the caller; None for one without credentials.

    Raises:
        MisuseError: the application declares no security.
    """
    security = app.state.security
    if not isinstance(security, Security):
        raise MisuseError("create_app() has no security=, so nobody can be signed in")
    before = security.authenticators
    security.authenticators = (_Always(principal),)
    try:
        yield
    finally:
        security.authenticators = before


class _Always:
    """An authenticator that finds the same caller in each request."""

    def __init__(self, principal: Principal | None) -> None:
        self._principal = principal

    @property
    def schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """No scheme, as nothing of this is documented."""
        return {}

    async def authenticate(self, scope: Scope) -> Principal | None:
        """Return the caller of the test."""
        del scope
        return self._principal
