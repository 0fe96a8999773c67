"""The declaration of web sessions; what they do in requests is in `tests/integration/test_web_sessions.py`."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel
from starlette.requests import Request

from hybridkit.adapters.fastapi import SessionCookies
from hybridkit.coordination import connect_redis
from hybridkit.errors import CrossSiteError, DeclarationError


class Basket(BaseModel):
    items: list[str] = []


def request_of(redis: object, *, origin: str = "https://api.shop.test") -> Request:
    headers = [(b"host", b"api.shop.test"), (b"origin", origin.encode()), (b"sec-fetch-site", b"same-site")]
    app = SimpleNamespace(state=SimpleNamespace(redis=redis))
    return Request({"type": "http", "scheme": "https", "method": "POST", "headers": headers, "app": app})


@pytest.mark.parametrize("origin", ["https://admin.shop.test", "http://localhost:8443", "https://[::1]:1"])
async def test_a_page_of_a_trusted_origin_is_let_in(origin: str) -> None:
    """As far as to Redis, which is not there; a page of any other origin is refused before."""
    web = SessionCookies("web", Basket, trusted_origins=["https://shop.test", origin])
    with pytest.raises(DeclarationError, match="sessions need Redis"):
        await anext(web(request_of(None, origin=origin)))
    with pytest.raises(CrossSiteError):
        await anext(web(request_of(None, origin="https://other.test")))


@pytest.mark.parametrize("origin", ["shop.test", "https://shop.test/", "https://", "https://shop.test/path"])
def test_what_is_no_origin_is_not_trusted(origin: str) -> None:
    """It would match no page, so the declaration is refused and names it."""
    with pytest.raises(DeclarationError, match="not '" + origin):
        SessionCookies("web", Basket, trusted_origins=["https://shop.test", origin])


def test_a_declaration_shows_its_name_and_data() -> None:
    """Nothing of any session."""
    assert repr(SessionCookies("web", Basket)) == "SessionCookies('web', Basket)"


async def test_each_redis_has_sessions_of_its_own_with_the_declared_times() -> None:
    """Made once for each: one declaration serves every application of a process."""
    web = SessionCookies("web", Basket, idle_seconds=60.0, lifetime_seconds=600.0)
    async with connect_redis("redis://localhost:1") as one, connect_redis("redis://localhost:1/1") as other:
        sessions = web.of(request_of(one))
        assert web.of(request_of(one)) is sessions
        assert web.of(request_of(other)) is not sessions
    assert repr(sessions) == "Sessions('web', idle_seconds=60.0, lifetime_seconds=600.0)"


@pytest.mark.parametrize("limit", ["idle_seconds", "lifetime_seconds", "max_data_bytes", "max_per_user"])
async def test_each_limit_reaches_the_sessions(limit: str) -> None:
    """They refuse what is not positive."""
    web = SessionCookies("web", Basket, **cast("Any", {limit: 0}))
    async with connect_redis("redis://localhost:1") as redis:
        with pytest.raises(DeclarationError, match="must be positive"):
            web.of(request_of(redis))
