"""The callers of a data service: who they are, and what they may do.

```python
create_data_service(PostgresSettings, {USERS: UserTable, ORDERS: OrderTable}, grants={
    "api_service": Grant(write=[USERS, ORDERS], emit=True),
    "bot_service": Grant(read=[USERS]),
})
```

The settings have a key for each caller, which verifies its service tokens. Without keys a caller only says who it is,
which tells callers apart and proves nothing; production refuses to start like that.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from hybridkit.dataservice._http._requests import ContractRequest, caller_of
from hybridkit.errors import AccessDeniedError, DeclarationError
from hybridkit.resources._resource import AnyResource
from hybridkit.security import ServiceTokenVerifier
from hybridkit.settings import ServiceSettings

if TYPE_CHECKING:
    from pydantic import SecretStr

type Access = Literal["read", "create", "update", "delete", "emit"]
type GrantedResources = Collection[AnyResource] | Literal["*"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The permissions of one caller.

    Attributes:
        read: the resources that it may read; `"*"` for all.
        write: the resources that it may read and write; `"*"` for all.
        emit: whether its transactions may emit events and commands.
    """

    read: GrantedResources = ()
    write: GrantedResources = ()
    emit: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the caller may do nothing."""
        return not (self.read or self.write or self.emit)

    def allows(self, resource: AnyResource | None, access: Access) -> bool:
        """Return whether the caller may access the resource in that way; without a resource, whether it may emit."""
        if resource is None:
            return self.emit
        granted = [self.write, self.read] if access == "read" else [self.write]
        return any(isinstance(resources, str) or resource in resources for resources in granted)


class Callers:
    """The callers of one data service.

    Args:
        verifier: verifies their tokens; None believes what `X-Service-Name` says.
        grants: the permissions by the caller's name; None lets every caller do everything.
    """

    def __init__(self, verifier: ServiceTokenVerifier | None, grants: Mapping[str, Grant] | None) -> None:
        self._verifier = verifier
        self._grants = grants

    def __repr__(self) -> str:
        return f"Callers({self._verifier!r}, grants={None if self._grants is None else sorted(self._grants)})"

    @classmethod
    def of(cls, settings: ServiceSettings, grants: Mapping[str, Grant] | None) -> Self:
        """Return the callers that the settings have keys for.

        Raises:
            DeclarationError: a key can't be used, or a caller has a grant and no key.
        """
        keys: dict[str, SecretStr] = getattr(settings, "service_token_keys", {})
        if not keys:
            return cls(None, grants)
        keyless = sorted(set(grants or ()) - set(keys))
        if keyless:
            raise DeclarationError(
                f"service_token_keys has no key for {', '.join(keyless)}, which has a grant"
            )
        plain = {service: key.get_secret_value() for service, key in keys.items()}
        return cls(ServiceTokenVerifier(plain, audience=settings.service_name), grants)

    @property
    def prove_who_they_are(self) -> bool:
        """Whether a call needs a service token."""
        return self._verifier is not None

    def name(self, request: ContractRequest) -> str:
        """Return the name of the calling service.

        Raises:
            UnauthenticatedError: the request has no valid token.
            InvalidRequestError: tokens are not required, and `X-Service-Name` is no service name.
        """
        if self._verifier is None:
            return caller_of(request)
        return self._verifier.caller(request.fields.single("authorization"))

    def check_known(self, caller: str) -> None:
        """Check that the caller may do anything at all, before the body of its request is read.

        Raises:
            AccessDeniedError: the caller has no permission.
        """
        if self._grants is None:
            return
        grant = self._grants.get(caller)
        if grant is None or grant.is_empty:
            raise AccessDeniedError(f"{caller} may do nothing here; the data service's grants say who may")

    def check(self, caller: str, resource: AnyResource | None, access: Access) -> None:
        """Check that the caller may access the resource in that way; without a resource, that it may emit.

        Raises:
            AccessDeniedError: the caller has no such permission.
        """
        if self._grants is None:
            return
        grant = self._grants.get(caller)
        if grant is None or not grant.allows(resource, access):
            what = "emit events" if resource is None else f"{access} {resource.name}"
            raise AccessDeniedError(f"{caller} may not {what} here; the data service's grants say who may")
