"""What every client is: a service's address, a pipeline to it, and an `async with` block in which it is open."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from hybridkit._syntax import NAME_SYNTAX
from hybridkit.clients._pipeline._pipeline import Intent, Pipeline
from hybridkit.clients._pipeline._policy import ClientPolicy
from hybridkit.clients._transports._base import Response
from hybridkit.clients._transports._httpx import AnyTransport, open_transport
from hybridkit.codec import check_size
from hybridkit.contract import MAX_BODY_BYTES
from hybridkit.errors import (
    DeclarationError,
    HybridkitError,
    MisuseError,
    UnauthenticatedError,
    UnavailableError,
)

__all__ = ["JSON", "BaseClient"]

JSON: Final = {"content-type": "application/json"}
PROBE_SECONDS: Final = 0.9
"""Just below the second that a health check gives each probe, so that it hears the reason."""


class BaseClient:
    """A client of one service, open inside its `async with` block."""

    def __init__(
        self,
        base_url: str,
        *,
        service: str,
        transport: AnyTransport | None = None,
        policy: ClientPolicy | None = None,
        authorization: Callable[[], str] | None = None,
        internal: bool = True,
    ) -> None:
        self._base_url = _checked_base_url(base_url)
        if not NAME_SYNTAX.fullmatch(service):
            raise DeclarationError(f"service {service!r}: a service's name is snake_case")
        self._service = service
        self._given = transport
        self._policy = policy or ClientPolicy()
        self._authorization = authorization
        self._internal = internal
        self._pipeline: Pipeline | None = None
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        state = "open" if self._pipeline else "closed"
        return f"{type(self).__name__}({self._base_url!r}, service={self._service!r}, {state})"

    async def __aenter__(self) -> Self:
        if self._pipeline is not None:
            raise MisuseError(f"{self!r} is open already")
        transport = open_transport(self._given)
        self._stack.push_async_callback(transport.aclose)
        self._pipeline = Pipeline(
            transport,
            base_url=self._base_url,
            target=urlsplit(self._base_url).netloc,
            service=self._service,
            policy=self._policy,
            authorization=self._authorization,
            internal=self._internal,
        )
        self._stack.push_async_callback(self._pipeline.aclose)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipeline = None
        await self._stack.aclose()

    async def probe(self) -> str | None:
        """Ask the service whether it is ready; within a second, without a retry, and whatever the breaker says.

        Returns:
            `breaker: open` or `breaker: half_open` while calls are held back, None while they go through.

        Raises:
            UnavailableError: it is not ready, doesn't answer, or refuses this service's token.
        """
        pipeline = self._open_pipeline()
        try:
            await pipeline.run_once(
                Intent(method="GET", path="/ready", safe=True), timeout_seconds=PROBE_SECONDS
            )
        except UnauthenticatedError as error:
            raise UnavailableError(
                f"{self._base_url} refuses the token of {self._service}: compare SERVICE_TOKEN_KEY with its"
                " SERVICE_TOKEN_KEYS, and POSTGRES_SERVICE_NAME or MONGO_SERVICE_NAME with its SERVICE_NAME"
            ) from error
        except HybridkitError as error:
            if isinstance(error, UnavailableError) and pipeline.breaker_state == "closed":
                raise
            breaker = "" if pipeline.breaker_state == "closed" else f" (breaker: {pipeline.breaker_state})"
            raise UnavailableError(f"{self._base_url} is not ready{breaker}: {error}") from error
        return None if pipeline.breaker_state == "closed" else f"breaker: {pipeline.breaker_state}"

    async def _read(
        self, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response:
        """A `GET`, or with a body a `POST` that changes nothing."""
        check_size(body, limit_bytes=MAX_BODY_BYTES)
        method, content = ("POST", JSON) if body else ("GET", {})
        intent = Intent(
            method=method, path=path, headers={**content, **(headers or {})}, body=body, safe=True
        )
        return await self._open_pipeline().run(intent)

    async def _write(
        self, method: str, path: str, body: bytes, *, key: str, headers: Mapping[str, str] = JSON
    ) -> Response:
        check_size(body, limit_bytes=MAX_BODY_BYTES)
        intent = Intent(method=method, path=path, headers=headers, body=body, key=key)
        return await self._open_pipeline().run(intent)

    def _open_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise MisuseError(f"{self!r}: use it inside its `async with` block")
        return self._pipeline


def _checked_base_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise DeclarationError("base_url should be like http://127.0.0.1:8001")
    if parts.username is not None or parts.password is not None:
        raise DeclarationError("base_url must not have a user or password: it ends up in logs and traces")
    return base_url.rstrip("/")
