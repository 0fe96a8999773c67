"""The data service under test, with helpers for requests and their responses."""

# ruff: noqa: S101 - these are tests

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest

from hybridkit.clients import AnyTransport, Request, Transport
from hybridkit.clients._transports._httpx import HttpxTransport, new_client, open_transport
from hybridkit.codec import decode_json, encode_json
from hybridkit.ids import new_id
from hybridkit.resources._resource import AnyResource
from hybridkit.testing.conformance._resources import THINGS

type Capability = Literal[
    "transactions", "foreign_keys", "events", "slow_call", "query_method", "pipelines", "streams", "audit"
]
"""A capability that not every data service has.

* `transactions`: one write changes several records.
* `foreign_keys`: the `place_id` of a thing has to be the id of a place.
* `events`: a write emits events.
* `slow_call`: the service serves `SLOW`, a call that keeps the database busy.
* `query_method`: the web server accepts the method QUERY.
* `pipelines`: the database is MongoDB.
* `audit`: the changes of things and places are kept in an audit trail.
* `streams`: the service keeps the streams `COUNTERS`.
"""

MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024
TIMEOUT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response.

    Attributes:
        status: the HTTP status.
        headers: the values by name, in lower case.
        body: the body as it came.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the JSON value in the body."""
        return decode_json(self.body)

    @property
    def items(self) -> list[Any]:
        """The items of a page or a batch."""
        assert self.status == 200, self
        return list(self.json()["items"])

    @property
    def problem(self) -> tuple[int, str]:
        """The status and code of the problem; fails where the response is none."""
        assert self.headers.get("content-type") == "application/problem+json", self
        found = self.json()
        assert found["status"] == self.status, self
        return self.status, found["code"]

    @property
    def pointers(self) -> list[str]:
        """The pointers of the problem's `errors`."""
        return [entry["pointer"] for entry in self.json().get("errors", [])]


class ServiceUnderTest:
    """A running data service that serves `CONFORMANCE_RESOURCES`. Open it in an `async with` block.

    Args:
        base_url: the URL of the service.
        lacks: the capabilities that it doesn't have, each with the reason for skipping its tests.
        headers: headers of every request, such as `Authorization`.
        transport: the transport, as for a client; by default over the network.

    Attributes:
        tag: a unique text, which the records of the test have.
    """

    def __init__(
        self,
        base_url: str,
        *,
        lacks: Mapping[Capability, str] | None = None,
        headers: Mapping[str, str] | None = None,
        transport: AnyTransport | None = None,
    ) -> None:
        self.tag = uuid4().hex
        self._base_url = base_url.rstrip("/")
        self._lacks = lacks or {}
        self._headers = {"x-service-name": "conformance", "accept-encoding": "identity", **(headers or {})}
        self._given = transport
        self._transport: Transport | None = None

    def __repr__(self) -> str:
        return f"ServiceUnderTest({self._base_url!r}, lacks={sorted(self._lacks)})"

    async def __aenter__(self) -> Self:
        # Over the network by httpx, which sends a field's lines as they are.
        self._transport = (
            HttpxTransport(new_client(None), owned=True)
            if self._given is None
            else open_transport(self._given)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None

    def needs(self, capability: Capability) -> None:
        """Skip the test where the service lacks the capability."""
        if reason := self._lacks.get(capability):
            pytest.skip(reason)

    def has(self, capability: Capability) -> bool:
        """Return whether the service has the capability."""
        return capability not in self._lacks

    # ── any request ──────────────────────────────────────────────────────────────────────────────

    async def ask(
        self, method: str, target: str, body: object = b"", *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request, and return its response.

        Args:
            method: the method in upper case.
            target: path and query, percent-encoded.
            body: bytes are sent as they are, other values as JSON.
            headers: additional headers.
        """
        assert self._transport, "use it inside its `async with` block"
        content = body if isinstance(body, bytes) else encode_json(body)
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        response = await self._transport.send(
            Request(
                method=method,
                url=self._base_url + target,
                headers={**self._headers, **({"content-type": kind} if content else {}), **(headers or {})},
                body=content,
                timeout_seconds=TIMEOUT_SECONDS,
                connect_timeout_seconds=TIMEOUT_SECONDS,
                max_response_bytes=MAX_RESPONSE_BYTES,
            )
        )
        return Answer(response.status, response.headers, response.body)

    async def get(self, path: str, params: Iterable[tuple[str, str]] = (), **headers: str) -> Answer:
        """Send a `GET`, with headers by their names, with `_` for `-`."""
        query = urlencode(list(params))
        return await self.ask("GET", f"{path}?{query}" if query else path, headers=_named(headers))

    async def write(
        self, method: str, path: str, body: object = b"", *, key: str | None = None, **headers: str
    ) -> Answer:
        """Send a write under the given idempotency key, or a new one."""
        sent = {"idempotency-key": f'"{key or uuid4().hex}"', **_named(headers)}
        return await self.ask(method, path, body, headers=sent)

    async def transact(self, *operations: Mapping[str, Any], **more: Any) -> Answer:
        """Send a `POST /v1:transact`, with `key` and the members beside `operations` by name."""
        key = more.pop("key", None)
        return await self.write("POST", "/v1:transact", {"operations": operations, **more}, key=key)

    # ── things ───────────────────────────────────────────────────────────────────────────────────

    async def thing(self, **values: object) -> dict[str, Any]:
        """Create a thing with the test's tag, and return it."""
        answer = await self.write("POST", THINGS.path, {"tag": self.tag, **values})
        assert answer.status == 201, answer
        return dict(answer.json())

    async def find(self, where: object = None, **members: object) -> list[Any]:
        """Return the test's things that fit a filter in its JSON form, with other members of the query by name."""
        mine = {"eq": ["tag", self.tag]}
        body = {"where": mine if where is None else {"and": [mine, where]}, **members}
        return (await self.ask("POST", f"{THINGS.path}:query", body)).items

    async def names(self, where: object = None) -> list[str]:
        """Return the names of the test's things that fit, in alphabetical order."""
        return sorted(item["name"] for item in await self.find(where, page_size=1000))

    async def names_by_url(self, *params: tuple[str, str]) -> list[str]:
        """Return the names of the test's things that fit a filter in its URL form, in alphabetical order."""
        answer = await self.get(THINGS.path, [("tag", f"eq.{self.tag}"), *params, ("page_size", "1000")])
        return sorted(item["name"] for item in answer.items)


def path_of(resource: AnyResource, record_id: object) -> str:
    """Return the path of a record."""
    return f"{resource.path}/{quote(str(record_id), safe='')}"


def fresh_id() -> str:
    """Return an id that no record has."""
    return str(new_id())


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
