"""Prove who calls: people and programs outside by tokens, our own services by service tokens.

```python
app = create_app(Settings, title="Shop", security=Security(authenticator))

@app.get("/orders", dependencies=[require(scope="orders:read")])
async def orders(principal: CurrentPrincipal) -> list[Order]: ...

@app.get("/prices", dependencies=[public])
async def prices() -> list[Price]: ...
```

A route without a policy keeps the application from starting. Between services:

```python
issuer = ServiceTokenIssuer("api_service", key=key, audience="db_postgres_service")
client = PostgresDataClient(url, service="api_service", authorization=issuer.header)

verifier = ServiceTokenVerifier({"api_service": key}, audience="db_postgres_service")
caller = verifier.caller(request.headers["authorization"])
```

A service token is a JWT (RFC 7519) that names its maker and its audience. It lives for a minute, so that a leaked one
is soon worth nothing, and another service can't use it.

Names are imported when they are used, as each needs its own extra: `fastapi` for policies, `security` for tokens.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridkit.errors import MissingExtraError

if TYPE_CHECKING:
    from hybridkit.security._access_tokens import AccessTokens
    from hybridkit.security._accounts import Account, Accounts
    from hybridkit.security._keys import KeyRing
    from hybridkit.security._login_sessions import (
        LOGIN_SESSIONS,
        DataSessions,
        LoginSession,
        LoginSessions,
        SessionRules,
        SessionStore,
    )
    from hybridkit.security._openid import OpenIdIssuer
    from hybridkit.security._passwords import PasswordCheck, Passwords
    from hybridkit.security._policies import CurrentPrincipal, OptionalPrincipal, public, require
    from hybridkit.security._principal import Principal
    from hybridkit.security._revocations import Revocations
    from hybridkit.security._security import OPEN, Authenticator, OpenAccess, Security, SecurityStart
    from hybridkit.security._service_tokens import ServiceTokenIssuer, ServiceTokenVerifier

__all__ = [
    "LOGIN_SESSIONS",
    "OPEN",
    "AccessTokens",
    "Account",
    "Accounts",
    "Authenticator",
    "CurrentPrincipal",
    "DataSessions",
    "KeyRing",
    "LoginSession",
    "LoginSessions",
    "OpenAccess",
    "OpenIdIssuer",
    "OptionalPrincipal",
    "PasswordCheck",
    "Passwords",
    "Principal",
    "Revocations",
    "Security",
    "SecurityStart",
    "ServiceTokenIssuer",
    "ServiceTokenVerifier",
    "SessionRules",
    "SessionStore",
    "public",
    "require",
]

_HOMES = {
    "Passwords": "_passwords",
    "PasswordCheck": "_passwords",
    "SessionStore": "_login_sessions",
    "SessionRules": "_login_sessions",
    "LoginSessions": "_login_sessions",
    "LoginSession": "_login_sessions",
    "LOGIN_SESSIONS": "_login_sessions",
    "DataSessions": "_login_sessions",
    "Accounts": "_accounts",
    "Account": "_accounts",
    "SecurityStart": "_security",
    "Revocations": "_revocations",
    "OpenIdIssuer": "_openid",
    "KeyRing": "_keys",
    "AccessTokens": "_access_tokens",
    "OPEN": "_security",
    "Authenticator": "_security",
    "CurrentPrincipal": "_policies",
    "OpenAccess": "_security",
    "OptionalPrincipal": "_policies",
    "Principal": "_principal",
    "Security": "_security",
    "ServiceTokenIssuer": "_service_tokens",
    "ServiceTokenVerifier": "_service_tokens",
    "public": "_policies",
    "require": "_policies",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"jwt", "cryptography", "argon2"}:
            raise
        raise MissingExtraError(f"{__name__}.{name}", extra="security") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
