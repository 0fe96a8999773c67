"""The accounts that people sign in to, as an application keeps them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a login needs to know of an account.

    Attributes:
        id: the id of the user, the `sub` of the tokens.
        password_hash: the stored hash; None for an account that has no password.
        roles: the roles of the user, read again with each refresh.
        scopes: what the access tokens are good for.
        is_active: whether the user may sign in.
    """

    id: str
    password_hash: str | None = None
    roles: Collection[str] = ()
    scopes: Collection[str] = ()
    is_active: bool = True

    def __repr__(self) -> str:
        return f"Account(id={self.id!r}, is_active={self.is_active})"


class Accounts(Protocol):
    """The accounts of an application. `login_routes` makes one for each request, as a dependency of FastAPI's.

    ```python
    class ShopAccounts:
        def __init__(self, postgres: Postgres) -> None: ...
    ```

    Hashes belong into a resource of their own, which only this API is granted.
    """

    async def by_name(self, name: str) -> Account | None:
        """Return the account that signs in with a name, or None.

        Args:
            name: as it was typed; whether case matters is the application's decision.
        """
        ...

    async def by_id(self, user_id: str) -> Account | None:
        """Return the account of a user, or None when it is gone."""
        ...

    async def save_password_hash(self, user_id: str, password_hash: str) -> None:
        """Store a new hash in place of the old one."""
        ...
