"""The security of an application: who verifies callers, and what is open to everybody."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

from hybridkit._asgi_types import Scope
from hybridkit.coordination import Redis
from hybridkit.errors import DeclarationError, UnauthenticatedError
from hybridkit.observability import get_logger
from hybridkit.security._principal import Principal
from hybridkit.settings import ServiceSettings

_log = get_logger("hybridkit.security")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityStart:
    """What an authenticator may use of an application that starts.

    Attributes:
        settings: the settings of this start.
        redis: the connection to Redis; None without one.
        authenticators: all authenticators of the application; the first one's users keep their plain ids.
    """

    settings: ServiceSettings
    redis: Redis | None = None
    authenticators: Sequence["Authenticator"] = ()


class Authenticator(Protocol):
    """A way in which callers prove who they are.

    One that needs the settings or a connection has a method `open(start)` as well, which takes a `SecurityStart` and
    returns an asynchronous context manager; it is entered while the application runs.
    """

    @property
    def schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """The security schemes of OpenAPI that describe it, by their name; a caller uses one of them."""
        ...

    async def authenticate(self, scope: Scope) -> Principal | None:
        """Return the caller of a request, or None when the request has no credentials of this kind.

        Args:
            scope: the ASGI scope of the request.

        Raises:
            UnauthenticatedError: the request has credentials of this kind, and they are not good.
        """
        ...


class Security:
    """The callers that an application knows, for `create_app(security=Security(...))`.

    Every route then has a policy, `require(...)` or `public`, or the application does not start.

    Args:
        authenticators: the ways in which callers prove who they are; the first that finds credentials decides.
        public_paths: the paths, and what is beneath them, of mounted applications and of Starlette's own routes that
            are open to everybody: these can't have a policy of their own, and are refused without being named here. A
            path opens no route of FastAPI's.

    Raises:
        DeclarationError: there is no authenticator, or a path does not begin with a slash.
    """

    def __init__(self, *authenticators: Authenticator, public_paths: Collection[str] = ()) -> None:
        if not authenticators:
            raise DeclarationError("Security() needs at least one way to prove an identity; OPEN needs none")
        if isinstance(public_paths, str) or not all(path.startswith("/") for path in public_paths):
            raise DeclarationError("public_paths is a list of paths that begin with a slash")
        self.authenticators = authenticators
        self.public_paths = tuple(path.rstrip("/") for path in public_paths)

    def __repr__(self) -> str:
        return f"Security({', '.join(map(repr, self.authenticators))})"

    @property
    def schemes(self) -> dict[str, Mapping[str, Any]]:
        """The security schemes of OpenAPI, by their name."""
        return {name: scheme for each in self.authenticators for name, scheme in each.schemes.items()}

    async def authenticate(self, scope: Scope) -> Principal | None:
        """Return the caller of a request, or None when it has no credentials.

        Raises:
            UnauthenticatedError: the credentials are not good.
        """
        for each in self.authenticators:
            principal = await each.authenticate(scope)
            if principal is not None:
                return principal
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                _log.info("token refused", reason="it is of no issuer that this API knows")
                raise UnauthenticatedError(
                    "the token is not good here, or has expired", challenge='Bearer error="invalid_token"'
                )
        return None

    @asynccontextmanager
    async def opened(self, settings: ServiceSettings, redis: Redis | None) -> AsyncGenerator[None]:
        """Open what the authenticators need inside the block, which `create_app` does."""
        start = SecurityStart(settings=settings, redis=redis, authenticators=self.authenticators)
        async with AsyncExitStack() as stack:
            for each in self.authenticators:
                opening = getattr(each, "open", None)
                if opening is not None:
                    await stack.enter_async_context(opening(start))
            yield

    def is_public_path(self, path: str) -> bool:
        """Return whether a path, or one above it, is among the public ones."""
        return any(path == each or path.startswith(f"{each}/") for each in self.public_paths)


@final
class OpenAccess:
    """The type of `OPEN`."""

    def __repr__(self) -> str:
        return "OPEN"


OPEN: Final = OpenAccess()
"""Says of an application that everybody may call all its routes: `create_app(security=OPEN)`."""
