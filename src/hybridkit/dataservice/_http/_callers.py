"""The callers of a data service: who they are, and what they may do.

```python
create_data_service(PostgresSettings, {USERS: UserTable, ORDERS: OrderTable}, grants={
    "api_service": Grant(read=[USERS], create=[ORDERS], call=[CANCEL_ORDER], emit=[OrderPlaced]),
    "bot_service": Grant(read=[USERS]),
    "admin_service": Grant(write="*"),
})
```

The settings have a key for each caller, which verifies its service tokens. Without keys a caller only says who it is,
which tells callers apart and proves nothing; production refuses to start like that.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self, get_args

from hybridkit.contract import Emission
from hybridkit.dataservice._http._requests import ContractRequest, caller_of
from hybridkit.errors import AccessDeniedError, DeclarationError
from hybridkit.events import Command, Event
from hybridkit.observability import get_logger
from hybridkit.resources._resource import AnyCall, AnyResource
from hybridkit.security import ServiceTokenVerifier
from hybridkit.settings import ServiceSettings
from hybridkit.streams._stream import AnyStream

if TYPE_CHECKING:
    from pydantic import SecretStr

_log = get_logger("hybridkit.dataservice")

type Access = Literal["read", "create", "update", "delete", "append", "audit"]
type Granted = AnyResource | AnyStream
type GrantedResources = Collection[AnyResource | AnyStream] | Literal["*"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The permissions of one caller; nothing is granted that isn't named.

    Attributes:
        read: the resources that it may read, with their safe calls, and the streams; `"*"` for all.
        create: the resources that it may create records in.
        update: the resources whose records it may change. The answer to a change shows the record, to a caller that
            may not read too. An upsert needs `create` and `update`.
        delete: the resources whose records it may delete and undelete.
        append: the streams that it may append events to. Those are published, whatever `emit` says.
        write: the resources and streams that it may use in every way: read, create, update, delete, append, and all of
            their calls.
        call: the service's own calls that it may make, whatever else it may do with their resources.
        emit: the events and commands that its transactions may emit; True for all. A command goes into its own queue
            only.
        audit: the audited resources whose history it may read. No other permission implies it, not even `write`, and
            nobody may write the audit trail.
        forget: whether it may erase the personal data of a person, wherever it is. No other permission implies it.
    """

    read: GrantedResources = ()
    create: GrantedResources = ()
    update: GrantedResources = ()
    delete: GrantedResources = ()
    append: GrantedResources = ()
    write: GrantedResources = ()
    call: Collection[AnyCall] = ()
    emit: bool | Collection[type[Event] | type[Command]] = False
    audit: Collection[AnyResource] | Literal["*"] = ()
    forget: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the caller may do nothing."""
        return not any(getattr(self, name) for name in self.__dataclass_fields__)

    def allows(self, resource: Granted, access: Access) -> bool:
        """Return whether the caller may access the resource or stream in that way."""
        granted: GrantedResources = getattr(self, access)
        if access == "audit":
            return granted == "*" or resource in granted
        return granted == "*" or self.write == "*" or resource in granted or resource in self.write

    def allows_call(self, call: AnyCall) -> bool:
        """Return whether the caller may make a call of the service's own."""
        if call in self.call or self.write == "*" or call.resource in self.write:
            return True
        return call.safe and self.allows(call.resource, "read")

    def allows_emission(self, event_type: str, queue: str | None) -> bool:
        """Return whether the caller may emit an event of that type or, with a queue, a command."""
        if isinstance(self.emit, bool):
            return self.emit
        return any(
            event_type == message.message_type
            and queue == (message.queue if issubclass(message, Command) else None)
            for message in self.emit
        )


def check_grants(
    grants: Mapping[str, Grant],
    resources: Collection[AnyResource],
    calls: Collection[AnyCall],
    streams: Collection[AnyStream] = (),
) -> None:
    """Refuse grants of what the service doesn't have: a caller would be refused, and nobody would see why.

    Raises:
        DeclarationError: a grant names a resource, stream or call that isn't served, the history of a resource that
            isn't audited, or emits what is no event or command.
    """
    for caller, grant in grants.items():
        _check_granted(caller, grant, resources, streams)
        for call in grant.call:
            if call not in calls:
                raise DeclarationError(f"{caller} may call {call.path}, which this service doesn't have")
        for message in () if isinstance(grant.emit, bool) else grant.emit:
            if not getattr(message, "message_type", ""):
                raise DeclarationError(
                    f"{caller} may emit {message!r}, which is no declared event or command"
                )


def _check_granted(
    caller: str, grant: Grant, resources: Collection[AnyResource], streams: Collection[AnyStream]
) -> None:
    for name in (*get_args(Access.__value__), "write"):
        granted: GrantedResources = getattr(grant, name)
        served = streams if name == "append" else resources if name in _OF_RECORDS else (*resources, *streams)
        for each in () if granted == "*" else granted:
            if each not in served:
                raise DeclarationError(f"{caller} may {name} {each!r}, which this service doesn't have")
    for resource in () if grant.audit == "*" else grant.audit:
        if not resource.audited:
            raise DeclarationError(f"{caller} may audit {resource!r}, which isn't declared with audited=True")


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
            DeclarationError: a key can't be used, or in production a caller has a grant and no key.
        """
        keys: dict[str, SecretStr] = getattr(settings, "service_token_keys", {})
        if not keys:
            return cls(None, grants)
        keyless = sorted(set(grants or ()) - set(keys))
        if keyless and settings.environment == "production":
            raise DeclarationError(
                f"SERVICE_TOKEN_KEYS has no key for {', '.join(keyless)}, so its grant is of no use: add the secret"
                " that it has as SERVICE_TOKEN_KEY, or remove the grant"
            )
        for caller in keyless:  # a part of the application runs, as under a debugger or in a test
            _log.info("a caller with a grant has no key", caller=caller)
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
        grant = self._grant(caller)
        if grant is not None and grant.is_empty:
            raise AccessDeniedError(f"{caller} may do nothing here; the data service's grants say who may")

    def check(self, caller: str, resource: Granted, access: Access) -> None:
        """Check that the caller may access the resource or stream in that way.

        Raises:
            AccessDeniedError: the caller has no such permission.
        """
        grant = self._grant(caller)
        if grant is not None and not grant.allows(resource, access):
            raise _denied(caller, f"{access} {resource.name}")

    def audit_scope(self, caller: str) -> Collection[AnyResource] | None:
        """Return the resources whose history the caller may read; None for all of them.

        Raises:
            AccessDeniedError: the caller may read no history.
        """
        grant = self._grant(caller)
        if grant is None or grant.audit == "*":
            return None
        if not grant.audit:
            raise _denied(caller, "read the audit trail")
        return grant.audit

    def check_call(self, caller: str, call: AnyCall) -> None:
        """Check that the caller may make a call of the service's own.

        Raises:
            AccessDeniedError: the caller has no such permission.
        """
        grant = self._grant(caller)
        if grant is not None and not grant.allows_call(call):
            raise _denied(caller, f"call {call.resource.name}:{call.name}")

    def check_forget(self, caller: str) -> None:
        """Check that the caller may erase the personal data of a person.

        Raises:
            AccessDeniedError: the caller has no such permission.
        """
        grant = self._grant(caller)
        if grant is not None and not grant.forget:
            raise _denied(caller, "forget a person")

    def check_emission(self, caller: str, emission: Emission) -> None:
        """Check that the caller may emit an event or command.

        Raises:
            AccessDeniedError: the caller has no such permission.
        """
        grant = self._grant(caller)
        if grant is not None and not grant.allows_emission(emission.event_type, emission.queue):
            where = "" if emission.queue is None else f" into {emission.queue}"
            raise _denied(caller, f"emit {emission.event_type}{where}")

    def _grant(self, caller: str) -> Grant | None:
        """Return the permissions of a caller; None where every caller may do everything."""
        return None if self._grants is None else self._grants.get(caller, _NOTHING)


_NOTHING: Final = Grant()
_OF_RECORDS: Final = frozenset({"create", "update", "delete", "audit"})


def _denied(caller: str, what: str) -> AccessDeniedError:
    return AccessDeniedError(f"{caller} may not {what} here; the data service's grants say who may")
