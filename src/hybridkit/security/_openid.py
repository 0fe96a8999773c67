"""Tokens of an identity provider, verified by the keys that it publishes (OpenID Connect Discovery 1.0)."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Final, cast
from urllib.parse import parse_qs, urlsplit

from hybridkit._asgi_types import Scope
from hybridkit._tasks import TaskSet
from hybridkit.clients import ClientPolicy, ServiceClient
from hybridkit.codec import decode_json
from hybridkit.context import RequestContext, bind
from hybridkit.errors import DeclarationError, HybridkitError, ResponseError, UnavailableError
from hybridkit.observability import get_logger
from hybridkit.security._keys import Algorithm, TokenRefusedError, VerifyingKey, keys_of_jwks
from hybridkit.security._principal import Principal
from hybridkit.security._security import SecurityStart
from hybridkit.security._verification import (
    TokenRules,
    VerifiedTokens,
    bearer_token,
    claimed_issuer,
    refused,
)

type Fetch = Callable[[str], Awaitable[object]]
"""Returns the JSON document at a URL."""

REFETCH_SECONDS: Final = 30.0
"""The least time between two fetches, whatever strangers put into tokens."""
FRESH_SECONDS: Final = 600.0
"""How long keys are used without looking for new ones."""
FETCH_SECONDS: Final = 5.0
MAX_DOCUMENT_BYTES: Final = 2**20

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_log = get_logger("hybridkit.security")


class OpenIdIssuer:
    """Verifies the access tokens of an identity provider: `Security(OpenIdIssuer("https://id.example.com", …))`.

    The keys come from the document at `ISSUER/.well-known/openid-configuration`. They are fetched with the first token,
    by one request however many callers wait, and again after ten minutes beside the work. A token whose key is unknown
    has them fetched again, at most once in 30 seconds. While the issuer can't be reached the known keys stay good.

    Args:
        issuer: the `iss` of the tokens, an `https` URL, exactly as the provider writes it.
        audience: what `aud` is or has: the name of this API at the provider.
        algorithm: the only algorithm by which the provider signs; tokens can't choose another.
        token_type: the `typ` of its access tokens; "" takes those without one, and `JWT`, which ID tokens are as well.
        roles_claim: the claim with the roles, such as `realm_access.roles`.
        fetch: gets a document in place of the SDK's own client, as through a proxy.
        clock: gives Unix seconds.
        monotonic: gives seconds that never go back.

    Raises:
        DeclarationError: the issuer is no `https` URL. Plain `http` is for a provider on this machine.
    """

    def __init__(
        self,
        issuer: str,
        *,
        audience: str,
        algorithm: Algorithm = "RS256",
        token_type: str = "at+jwt",  # noqa: S107 - no password
        roles_claim: str = "roles",
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_url(issuer, what="an issuer")
        types = {token_type.lower()} if token_type else {"", "jwt", "at+jwt"}
        self._rules = TokenRules(
            issuer=issuer,
            audience=audience,
            algorithm=algorithm,
            types=frozenset(types),
            roles_claim=roles_claim,
            is_home=False,
        )
        self._given_fetch = fetch
        self._fetch: Fetch = fetch or _nothing
        self._clock, self._monotonic = clock, monotonic
        self._keys: dict[str, VerifyingKey] = {}
        self._fetched_at = self._tried_at = -FRESH_SECONDS
        self._fetching: asyncio.Task[None] | None = None
        self._tasks = TaskSet()
        self._known = VerifiedTokens(seconds=60.0, clock=clock)

    def __repr__(self) -> str:
        return f"OpenIdIssuer({self._rules.issuer!r}, {len(self._keys)} keys)"

    @property
    def schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """The security scheme of OpenAPI."""
        url = f"{self._rules.issuer.rstrip('/')}/.well-known/openid-configuration"
        return {"openid": {"type": "openIdConnect", "openIdConnectUrl": url}}

    def open(self, start: SecurityStart) -> AbstractAsyncContextManager[None]:
        """Open the client for the keys inside the block; the provider need not be there yet."""
        return self._opened(start)

    @asynccontextmanager
    async def _opened(self, start: SecurityStart) -> AsyncGenerator[None]:
        is_home = len(start.authenticators) == 1 or start.authenticators[0] is self
        self._rules = replace(self._rules, is_home=is_home)
        self._known.clear()
        client = _Documents(start.settings.service_name)
        self._fetch = self._given_fetch or client.get
        try:
            yield
        finally:
            await self._tasks.cancel()
            await client.close()
            self._fetching = None

    async def authenticate(self, scope: Scope) -> Principal | None:
        """Return the caller by the bearer token of a request; None without one, or for the token of another issuer.

        Raises:
            UnauthenticatedError: the token is not good.
            UnavailableError: the issuer can't be reached, and its keys were never read.
        """
        token = bearer_token(scope["headers"])
        if token is None:
            return None
        return self._known.find(token) or await self.verify(token)

    async def verify(self, token: bytes) -> Principal | None:
        """Verify a token, and return its principal; None for the token of another issuer.

        Raises:
            UnauthenticatedError: the token is not good; the log says why.
            UnavailableError: the issuer can't be reached, and its keys were never read.
        """
        if claimed_issuer(token) != self._rules.issuer:
            return None
        try:
            text = token.decode("ascii")
            key = await self._key(self._rules.key_name(text))
            principal, expires = self._rules.principal(text, key, self._clock())
        except (TokenRefusedError, UnicodeDecodeError) as reason:
            raise refused(token, str(reason), issuer=self._rules.issuer) from None
        self._known.add(token, principal, expires)
        return principal

    async def _key(self, kid: str) -> VerifyingKey:
        now = self._monotonic()
        if kid in self._keys:
            if now - self._fetched_at >= FRESH_SECONDS:
                self._begin_fetching(now)  # beside the work: the key at hand is good
            return self._keys[kid]
        self._begin_fetching(now)
        if self._fetching is not None:
            await asyncio.wait({self._fetching}, timeout=FETCH_SECONDS)
        if kid in self._keys:
            return self._keys[kid]
        if not self._keys:
            raise UnavailableError(
                "the identity provider can't be reached", retry_after_seconds=FETCH_SECONDS
            )
        raise TokenRefusedError("its key is not among those of its issuer")

    def _begin_fetching(self, now: float) -> None:
        """Begin to fetch the keys, unless that is under way, or was tried within the last 30 seconds."""
        if self._fetching is None and now - self._tried_at >= REFETCH_SECONDS:
            self._tried_at = now
            self._fetching = self._tasks.start(self._refetch())

    async def _refetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                # Not within the deadline of the request that happened to come first: others wait as well.
                with bind(RequestContext()):
                    document = await self._fetch(await self._jwks_url())
            found = {key.kid: key for key in keys_of_jwks(document)}
            if not found:
                raise ResponseError("the issuer publishes no key that can be used", response_status=200)
        except (HybridkitError, TimeoutError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
            _log.warning(
                "keys not read", issuer=self._rules.issuer, reason=reason, known_keys=len(self._keys)
            )
        else:
            if found.keys() != self._keys.keys():
                _log.info("keys read", issuer=self._rules.issuer, keys=len(found))
                self._known.clear()  # a key that is gone is gone for known tokens too
            self._keys, self._fetched_at = found, self._monotonic()
        finally:
            self._fetching = None

    async def _jwks_url(self) -> str:
        issuer = self._rules.issuer
        url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        document = await self._fetch(url)
        found = cast("dict[str, object]", document if isinstance(document, dict) else {})
        if found.get("issuer") != issuer:  # OpenID Connect Discovery 1.0, section 4.3
            raise ResponseError(f"the document names another issuer than {issuer}", response_status=200)
        jwks_url = str(found.get("jwks_uri", ""))
        try:
            _check_url(jwks_url, what="jwks_uri")
        except DeclarationError as error:
            raise ResponseError(str(error), response_status=200) from None
        return jwks_url


class _Documents:
    """Gets JSON documents by the SDK's own client, one for each host."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._clients: dict[str, ServiceClient] = {}

    def __repr__(self) -> str:
        return f"_Documents({sorted(self._clients)})"

    async def get(self, url: str) -> object:
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc}"
        if base not in self._clients:
            policy = ClientPolicy.interactive()
            self._clients[base] = ServiceClient(base, service=self._service, policy=policy)
            await self._clients[base].__aenter__()
        response = await self._clients[base].get(parts.path or "/", params=parse_qs(parts.query))
        if len(response.body) > MAX_DOCUMENT_BYTES:
            raise ResponseError(f"{base} answers with too much", response_status=response.status)
        return decode_json(response.body)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.__aexit__(None, None, None)
        self._clients.clear()


async def _nothing(url: str) -> object:
    raise UnavailableError(f"{url} is not asked while the application does not run")


def _check_url(url: str, *, what: str) -> None:
    parts = urlsplit(url)
    is_plain = parts.scheme == "http" and parts.hostname in _LOOPBACK
    if (parts.scheme != "https" and not is_plain) or not parts.hostname or parts.username or parts.fragment:
        raise DeclarationError(f"{what} is an https URL, not {url!r:.200}")
