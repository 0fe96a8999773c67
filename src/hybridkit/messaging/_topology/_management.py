"""The bindings and policies of a virtual host, which AMQP can't list, from RabbitMQ's management API.

https://www.rabbitmq.com/docs/http-api-reference
"""

import asyncio
import base64
import http.client
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, NotRequired, TypedDict
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pydantic import TypeAdapter, ValidationError

from hybridkit.errors import AccessDeniedError, MisuseError, ResponseError, UnavailableError
from hybridkit.messaging._topology._declared import Binding

RESPONSE_SECONDS: Final = 10.0

_CONNECTIONS: Final = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


class _BindingRow(TypedDict):
    source: str
    destination: str
    destination_type: str
    routing_key: str


class _QueueRow(TypedDict):
    name: str
    policy: NotRequired[str | None]
    operator_policy: NotRequired[str | None]
    # An empty one is a list in some releases.
    effective_policy_definition: NotRequired[dict[str, Any] | list[Any] | None]


_BINDINGS: Final = TypeAdapter(list[_BindingRow])
_QUEUES: Final = TypeAdapter(list[_QueueRow])


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The policies of a queue, which add to its own arguments.

    Attributes:
        names: the names of the policy and the operator policy that match the queue.
        definition: the values that they set together, by the argument's name without `x-`.
    """

    names: tuple[str, ...]
    definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualHostState:
    """The bindings and policies of a virtual host.

    Attributes:
        bindings: all bindings but those of the default exchange, which every queue has.
        policies: the policies by queue, of queues that have some.
    """

    bindings: frozenset[Binding]
    policies: Mapping[str, Policies]


async def fetch_virtual_host(management_url: str, *, vhost: str) -> VirtualHostState:
    """Fetch the bindings and policies of a virtual host.

    New policies appear after some seconds, because the API caches its lists.

    Args:
        management_url: `http://user:password@host:15672`, or `https://`; the user needs the tag `management`.
        vhost: the virtual host's name, `/` for the default one.

    Raises:
        MisuseError: the URL is no HTTP URL.
        AccessDeniedError: the user may not use the management API.
        UnavailableError: there was no response in 10 s.
        ResponseError: the response is not that of a management API that knows the virtual host.
    """
    bindings = await list_bindings(management_url, vhost=vhost)
    columns = ",".join(_QueueRow.__annotations__)
    queues = await _ask(management_url, f"/api/queues/{quote(vhost, safe='')}?columns={columns}", _QUEUES)
    return VirtualHostState(
        bindings=bindings,
        policies={row["name"]: found for row in queues if (found := _policies(row))},
    )


async def list_bindings(management_url: str, *, vhost: str) -> frozenset[Binding]:
    """Fetch only the bindings of a virtual host; arguments and errors are those of `fetch_virtual_host`."""
    rows = await _ask(management_url, f"/api/bindings/{quote(vhost, safe='')}", _BINDINGS)
    return frozenset(_binding(row) for row in rows if row["source"])


async def _ask[T](management_url: str, path: str, shape: TypeAdapter[T]) -> T:
    return await asyncio.to_thread(_get, _parts(management_url), path, shape)


def _binding(row: _BindingRow) -> Binding:
    return Binding(
        source=row["source"],
        target=row["destination"],
        key=row["routing_key"],
        to_exchange=row["destination_type"] == "exchange",
    )


def _policies(row: _QueueRow) -> Policies | None:
    names = tuple(name for name in (row.get("policy"), row.get("operator_policy")) if name)
    definition = row.get("effective_policy_definition")
    return Policies(names=names, definition=definition) if isinstance(definition, dict) and names else None


def _parts(management_url: str) -> SplitResult:
    parts = urlsplit(management_url)
    try:
        known = parts.scheme in _CONNECTIONS and parts.hostname and (parts.port is None or parts.port)
    except ValueError:  # the port is no number
        known = False
    if not known:
        raise MisuseError("the management URL should be like http://user:password@host:15672")
    return parts


def _get[T](url: SplitResult, path: str, shape: TypeAdapter[T]) -> T:
    where = f"the management API at {url.hostname}:{url.port or ''}"
    connection = _CONNECTIONS[url.scheme](url.hostname or "", url.port, timeout=RESPONSE_SECONDS)
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
            return shape.validate_json(body)
    raise ResponseError(
        f"{where} answers {response.status} to {path}: is it one, of the broker with that virtual host?",
        response_status=response.status,
    )


def _authorization(url: SplitResult) -> dict[str, str]:
    user = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
