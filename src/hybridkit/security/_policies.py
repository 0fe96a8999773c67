"""Policies of routes: who may call them.

```python
@app.get("/orders", dependencies=[require(scope="orders:read")])
async def orders(principal: CurrentPrincipal) -> list[Order]: ...

admin = APIRouter(prefix="/admin", dependencies=[require(role="admin")])

@app.get("/prices", dependencies=[public])
async def prices() -> list[Price]: ...
```
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Final

from hybridkit.errors import AccessDeniedError, DeclarationError, MissingExtraError, UnauthenticatedError
from hybridkit.security._principal import Principal

try:
    from fastapi import Depends
    from fastapi.requests import HTTPConnection
except ImportError:
    raise MissingExtraError(__name__, extra="fastapi") from None

PRINCIPAL: Final = "hybridkit.principal"
"""The key in a scope of the verified `Principal`, or None for a caller that has not proven an identity."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One statement of who may call a route. It is checked before the route reads a body.

    Attributes:
        roles: the roles of which the caller has one; any caller if empty.
        scopes: the scopes all of which the caller has.
        is_public: whether nobody has to prove an identity.
    """

    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    is_public: bool = False

    async def __call__(self, _: HTTPConnection) -> None:
        """Refuse to serve where nothing checks policies; `create_app` takes this out of the routes that it checks.

        Raises:
            DeclarationError: the route needs a principal, and is not part of an application with `security=`.
        """
        if not self.is_public:
            raise DeclarationError(
                "a route has require(), and its application checks no policies: give create_app(security=)"
            )

    def check(self, principal: Principal) -> None:
        """Refuse a caller without the roles and scopes.

        Raises:
            AccessDeniedError: the caller has none of the roles, or not all scopes.
        """
        if self.roles and not self.roles & principal.roles:
            raise AccessDeniedError("this takes a role that the caller does not have")
        if not self.scopes <= principal.scopes:
            wanted = " ".join(sorted(self.scopes))
            raise AccessDeniedError(
                f"this takes the scope {wanted}",
                challenge=f'Bearer error="insufficient_scope", scope="{wanted}"',
            )


def require(*, role: str | Collection[str] = (), scope: str | Collection[str] = ()) -> Any:
    """Let only verified callers reach a route, a router or a mounted application: `dependencies=[require()]`.

    Several of them, as of a router and of its route, all have to be met. Anybody else is answered with 401, and a
    verified caller without the role or scope with 403, before the body is read.

    Args:
        role: a role that the caller has to have, or several of which one suffices.
        scope: a scope that the caller's credentials have to have, or several of which all are needed.

    Raises:
        DeclarationError: a role or scope is empty, or a scope has characters that no header can carry.
    """
    roles, scopes = _names(role), _names(scope)
    if bad := [
        each for each in scopes if not each.isascii() or not each.isprintable() or set(each) & set('" \\')
    ]:
        raise DeclarationError(
            f"a scope has no spaces, quotation marks and backslashes (RFC 6749, 3.3), not {bad}"
        )
    return Depends(Policy(roles, scopes))


public: Final[Any] = Depends(Policy(is_public=True))
"""The policy of routes that anybody may call: `dependencies=[public]`. Good credentials are read nevertheless."""


def _names(given: str | Collection[str]) -> frozenset[str]:
    names = frozenset((given,) if isinstance(given, str) else given)
    if "" in names:
        raise DeclarationError("a role or a scope has a name, and is not empty")
    return names


async def _optional_principal(connection: HTTPConnection) -> Principal | None:
    try:
        found: Principal | None = connection.scope[PRINCIPAL]
    except KeyError:
        raise DeclarationError("a handler wants the principal, and create_app() has no security=") from None
    return found


async def _current_principal(connection: HTTPConnection) -> Principal:
    found = await _optional_principal(connection)
    if found is None:
        raise UnauthenticatedError("this needs credentials")
    return found


CurrentPrincipal = Annotated[Principal, Depends(_current_principal)]
"""The verified caller, as a parameter of a route: `async def me(principal: CurrentPrincipal)`; 401 without one."""

OptionalPrincipal = Annotated[Principal | None, Depends(_optional_principal)]
"""The verified caller of a public route, or None."""
