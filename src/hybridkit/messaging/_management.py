"""The bindings of a virtual host, from RabbitMQ's management API: AMQP itself can't list them.

https://www.rabbitmq.com/docs/http-api-reference#get-apibindingsvhost
"""

import asyncio
import base64
import http.client
from contextlib import suppress
from http import HTTPStatus
from typing import Final, TypedDict
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pydantic import TypeAdapter, ValidationError

from hybridkit.errors import AccessDeniedError, MisuseError, ResponseError, UnavailableError
from hybridkit.messaging._topology import Binding

__all__ = ["list_bindings"]

ANSWER_SECONDS: Final = 10.0

_CONNECTIONS: Final = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


class _Row(TypedDict):
    source: str
    destination: str
    destination_type: str
    routing_key: str


_ROWS: Final = TypeAdapter(list[_Row])


async def list_bindings(management_url: str, *, vhost: str) -> frozenset[Binding]:
    """All bindings but those of the default exchange, by which every queue can be reached under its name.

    Args:
        management_url: `http://user:password@host:15672`, or `https://`; the user needs the tag `management`.
        vhost: by its name, `/` for the default one.

    Raises:
        MisuseError: the URL is no HTTP URL.
        AccessDeniedError: the user may not ask.
        UnavailableError: nobody answered in 10 s.
        ResponseError: what answered is not a management API that knows the virtual host.
    """
    rows = await asyncio.to_thread(_get, _parts(management_url), f"/api/bindings/{quote(vhost, safe='')}")
    return frozenset(
        Binding(
            source=row["source"],
            target=row["destination"],
            key=row["routing_key"],
            to_exchange=row["destination_type"] == "exchange",
        )
        for row in rows
        if row["source"]
    )


def _parts(management_url: str) -> SplitResult:
    parts = urlsplit(management_url)
    try:
        known = parts.scheme in _CONNECTIONS and parts.hostname and (parts.port is None or parts.port)
    except ValueError:  # the port is no number
        known = False
    if not known:
        raise MisuseError("the management URL should be like http://user:password@host:15672")
    return parts


def _get(url: SplitResult, path: str) -> list[_Row]:
    where = f"the management API at {url.hostname}:{url.port or ''}"
    connection = _CONNECTIONS[url.scheme](url.hostname or "", url.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", url.path.rstrip("/") + path, headers=_authorization(url))
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"{where} does not answer: {error!r}") from error
    finally:
        connection.close()
    if response.status in {401, 403}:
        raise AccessDeniedError(f"{where} refuses user {unquote(url.username or '')!r} ({response.status})")
    with suppress(ValidationError):
        if response.status == HTTPStatus.OK:
            return _ROWS.validate_json(body)
    raise ResponseError(
        f"{where} answers {response.status} to {path}: is it one, of the broker with that virtual host?",
        response_status=response.status,
    )


def _authorization(url: SplitResult) -> dict[str, str]:
    user = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
