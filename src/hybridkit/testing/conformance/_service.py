"""The service that the suite is run against, and how it is spoken to: plain requests, whole answers."""

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

type Capability = Literal["transactions", "foreign_keys", "events", "slow_call", "query_method", "pipelines"]
"""What not every server can do.

* `transactions`: several records in one write.
* `foreign_keys`: `place_id` of a thing has to name a place.
* `events`: a write may emit.
* `slow_call`: it serves `SLOW`, a call that keeps the database busy.
* `query_method`: the server knows the method QUERY.
* `pipelines`: it is MongoDB.
"""

MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024
TIMEOUT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: of HTTP.
        headers: lower-case names.
        body: as it came.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's value."""
        return decode_json(self.body)

    @property
    def items(self) -> list[Any]:
        """The items of a page or a batch."""
        assert self.status == 200, self
        return list(self.json()["items"])

    @property
    def problem(self) -> tuple[int, str]:
        """Status and code of a problem, which has to be one."""
        assert self.headers.get("content-type") == "application/problem+json", self
        found = self.json()
        assert found["status"] == self.status, self
        return self.status, found["code"]

    @property
    def pointers(self) -> list[str]:
        """Where a problem says that the mistakes are."""
        return [entry["pointer"] for entry in self.json().get("errors", [])]


class ServiceUnderTest:
    """A running data service that serves `CONFORMANCE_RESOURCES`. Open it in an `async with` block.

    Args:
        base_url: where it is.
        lacks: what it can't do, with the reason that the skipped tests tell.
        headers: what every request has, such as `Authorization`.
        transport: what to send with, as for a client; by default over the network.

    Attributes:
        tag: of the test that uses it; its records have it.
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
        # Over the network by httpx: aiohttp makes one line of a field that is to be sent on two.
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
        """Skip the test where the service lacks that."""
        if reason := self._lacks.get(capability):
            pytest.skip(reason)

    def has(self, capability: Capability) -> bool:
        """Whether the service can do that."""
        return capability not in self._lacks

    # ── any request ──────────────────────────────────────────────────────────────────────────────

    async def ask(
        self, method: str, target: str, body: object = b"", *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send exactly that.

        Args:
            method: upper case.
            target: path and query, percent-encoded.
            body: bytes as they are; anything else as JSON.
            headers: besides those of every request.
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
        """A `GET`; headers by their names with `_` for `-`."""
        query = urlencode(list(params))
        return await self.ask("GET", f"{path}?{query}" if query else path, headers=_named(headers))

    async def write(
        self, method: str, path: str, body: object = b"", *, key: str | None = None, **headers: str
    ) -> Answer:
        """A write under a key of its own, or the given one."""
        sent = {"idempotency-key": f'"{key or uuid4().hex}"', **_named(headers)}
        return await self.ask(method, path, body, headers=sent)

    async def transact(self, *operations: Mapping[str, Any], **more: Any) -> Answer:
        """A `POST /v1:transact`; `key` and the members beside `operations` by name."""
        key = more.pop("key", None)
        return await self.write("POST", "/v1:transact", {"operations": operations, **more}, key=key)

    # ── things ───────────────────────────────────────────────────────────────────────────────────

    async def thing(self, **values: object) -> dict[str, Any]:
        """A new thing of this test."""
        answer = await self.write("POST", THINGS.path, {"tag": self.tag, **values})
        assert answer.status == 201, answer
        return dict(answer.json())

    async def find(self, where: object = None, **members: object) -> list[Any]:
        """This test's things that fit, by the JSON form; the id is added where nothing else is ordered by."""
        mine = {"eq": ["tag", self.tag]}
        body = {"where": mine if where is None else {"and": [mine, where]}, **members}
        return (await self.ask("POST", f"{THINGS.path}:query", body)).items

    async def names(self, where: object = None) -> list[str]:
        """Their names, in alphabetical order."""
        return sorted(item["name"] for item in await self.find(where, page_size=1000))

    async def names_by_url(self, *params: tuple[str, str]) -> list[str]:
        """As `names`, by the URL form."""
        answer = await self.get(THINGS.path, [("tag", f"eq.{self.tag}"), *params, ("page_size", "1000")])
        return sorted(item["name"] for item in answer.items)


def path_of(resource: AnyResource, record_id: object) -> str:
    """Where a record is."""
    return f"{resource.path}/{quote(str(record_id), safe='')}"


def fresh_id() -> str:
    """An id that nobody has."""
    return str(new_id())


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
