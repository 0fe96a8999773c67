"""The base of all clients: the address of a service, and the pipeline to it while the client is open."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from hybridkit._syntax import NAME_SYNTAX
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._pipeline import Pipeline
from hybridkit.clients._pipeline._policy import ClientPolicy
from hybridkit.clients._transports._httpx import AnyTransport, open_transport
from hybridkit.errors import (
    DeclarationError,
    HybridkitError,
    MisuseError,
    UnauthenticatedError,
    UnavailableError,
)

PROBE_SECONDS: Final = 0.9
"""Just below the second that a health check gives each probe, so that the check gets the reason."""


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
        """Ask the service whether it is ready: within a second, without a retry, and past the breaker.

        Returns:
            `breaker: open` or `breaker: half_open` while calls are held back, None while they go through.

        Raises:
            UnavailableError: the service is not ready, doesn't answer, or refuses this service's token.
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
