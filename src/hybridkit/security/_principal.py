"""The verified caller of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from hybridkit.errors import DeclarationError

_NO_CLAIMS: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller whose credentials have been verified. Two principals are the same when `issuer` and `subject` are.

    Attributes:
        id: the user in this API, which the context, log lines and events carry as `user_id`. It is the subject; with
            a second issuer of the same API it is `subject@issuer`, so that two issuers can't name the same user.
        issuer: who vouches for the caller: the `iss` of a token.
        subject: the caller's name at the issuer, the `sub` of a token; by default the id.
        roles: the roles that the issuer gives the caller.
        scopes: what the credentials are good for.
        session_id: the session that the credentials belong to, `sid`; None without one.
        claims: everything that the credentials say, read-only.
    """

    id: str
    issuer: str = ""
    subject: str = ""
    roles: frozenset[str] = field(default=frozenset(), compare=False)
    scopes: frozenset[str] = field(default=frozenset(), compare=False)
    session_id: str | None = field(default=None, compare=False)
    claims: Mapping[str, Any] = field(default=_NO_CLAIMS, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.subject:
            object.__setattr__(self, "subject", self.id)
        for name in ("roles", "scopes"):
            if not isinstance(getattr(self, name), frozenset):
                object.__setattr__(self, name, frozenset(getattr(self, name)))
        if not isinstance(self.claims, MappingProxyType):
            object.__setattr__(self, "claims", MappingProxyType(dict(self.claims)))

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> Any:
        """Refuse to be a part of a request's body, where its sender could write any name.

        Raises:
            DeclarationError: always.
        """
        raise DeclarationError(
            "a principal is never read from a request: annotate the parameter with `CurrentPrincipal` (or"
            " `OptionalPrincipal` on a public route) of hybridkit.security"
        )
