"""The identity of a keyed request: its caller, its target, and the representation that it asks for.

Two callers with the same key have different claims, and neither learns of the other. One caller's key with another
request is an error.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import Enum, auto
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, cast
from urllib.parse import parse_qsl, quote, unquote_to_bytes
from uuid import UUID

from hybridkit._asgi_types import Scope
from hybridkit.context import current
from hybridkit.contract import CALLER_HEADER
from hybridkit.idempotency import claim_key

_CREDENTIAL = re.compile(
    r"auth|token|api-?key|access-?key|secret|session|signature|credential|passw|cert|cookie|jwt|assertion|principal"
    r"|identity|oidc|saml|subject|client-?(?:id|name)|ssl-client|tls-client|app-?id|init-data|user-?name"
    r"|(?:^|-)(?:user|uid|key|sid|pin|otp|login|email|badge|ticket)(?:-|$)|(?:^|-)client$"
)
_PARTY = re.compile(
    r"tenant|account|organi[sz]ation|workspace|company|customer|realm|impersonat|on-behalf|forwarded-host"
    r"|(?:^|-)(?:org|orgid|team|project|shop|store|site|domain|roles?|scopes?|groups?|as|member|actor|caller|consumer"
    r"|merchant|partner|vendor|seller|owner|employee|player|wallet|device)(?:-|$)"
)
_PER_ATTEMPT = re.compile(
    r"(?:x-)?(?:request|correlation|causation|amzn-request|amz-request|amz-cf|kong-request|ms-request|ms-client-request)-id"
    r"|(?:x-)?(?:request-timeout|request-deadline|request-start|queue-start|deadline|timeout)"
    r"|(?:x-)?(?:retry|retry-count|retry-attempt|attempt|attempts|attempt-count|date|amz-date|timestamp|nonce)|dpop"
    # tracing
    r"|traceparent|tracestate|baggage|b3|x-b3-.+|sentry-trace|newrelic|uber-trace-id|uberctx-.+|x-datadog-.+"
    r"|x-cloud-trace-context|x-amzn-trace-id|x-trace-id|x-span-id|x-ot-span-context|ot-tracer-.+|grpc-trace-bin"
    # proxies and the network
    r"|(?:x-)?forwarded|x-forwarded-(?:for|proto|protocol|port|scheme|ssl|server|prefix|path|uri|by)|via|cdn-loop|x-scheme"
    r"|x-real-ip|x-client-ip|x-cluster-client-ip|true-client-ip|fastly-client-ip|fly-client-ip|x-real-port"
    r"|cf-(?:connecting-ip|connecting-ipv6|pseudo-ipv4|ray|ipcountry|visitor|ew-via|worker|request-id)|x-varnish|x-timer"
    r"|x-envoy-(?!original).+|x-azure-(?:ref|clientip|socketip|requestchain|fdid)|x-arr-log-id|fly-(?:region|request-id)"
    r"|connection|proxy-connection|keep-alive|te|trailer|transfer-encoding|upgrade|host|content-length|expect"
    # the caller's program
    r"|user-agent|origin|referer|referrer|sec-.+|dnt|priority|save-data|upgrade-insecure-requests|x-requested-with"
    r"|cache-control|pragma|.*(?:csrf|xsrf).*|idempotency-.+"
)
"""Headers that identify neither the caller nor the request, and may differ between attempts."""
_KNOWN = re.compile(
    r"(?:^|_)(?:user|auth|principal|identity|subject|claims|caller|actor|member|account|tenant|org|organi[sz]ation)(?:_|$)"
)
"""Names under which middleware stores facts about the caller."""
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9_.~/-]*")
"""A path in which nothing is encoded or has to be."""
MAX_KNOWN_NAME: Final = 64
"""The longest header name whose meaning is remembered, in bytes: names come from strangers."""
_IDENTITIES: Final = ("identity", "id", "sub", "user_id", "uid", "username", "email")
_CREDENTIAL_PARAMETER = re.compile(
    r"(?:api|access|auth|session)?-?(?:key|token|auth|session|sid|jwt|sig|signature)(?:-id)?"
)


class Declared(NamedTuple):
    """The headers and parameters that a route declares.

    Attributes:
        secret_headers: the headers that hold API keys. All header names are in lower case.
        secret_parameters: query parameters that hold API keys, and all others that the route's dependencies read.
        of_dependencies: the headers that the route's dependencies read.
        of_route: the headers that the route's function reads.
    """

    secret_headers: frozenset[bytes] = frozenset()
    secret_parameters: frozenset[str] = frozenset()
    of_dependencies: frozenset[bytes] = frozenset()
    of_route: frozenset[bytes] = frozenset()


UNDECLARED: Final = Declared()


def claim_name(scope: Scope, key: str, declared: Declared, *, internal: bool) -> str:
    """Return the name of the claim for a key: that of this caller, for this method, host and path.

    The caller is the verified principal if there is one: the context's user, or the user of Starlette's authentication.
    Otherwise it is everything that could prove an identity: `Authorization`, cookies, API keys, sessions, the client's
    certificate, and whatever the route's dependencies read. What separates callers in other ways always counts: a
    tenant, and facts that middleware has put into the scope. None of it can be read from the name.

    Args:
        scope: the scope of the request, with what its dependencies have added.
        key: the caller's key.
        declared: what the route declares.
        internal: whether the callers are our own services, whose headers are believed.
    """
    user = principal(scope, internal=internal)
    parties, credentials = _distinguishing_fields(scope, declared)
    what = [scope["method"], _host(scope), _path(scope), key]
    if parties:
        what.append(_digest(parties).hex())
    if user is not None:
        who = f"user.{user}"
    elif credentials:  # what is weak, such as a password, is told by no hash that has no salt
        who = f"credentials.{_digest([*credentials, *(part.encode() for part in what)]).hex()}"
    else:
        who = "anonymous"
    return claim_key("http", who, *what)


def request_payload(scope: Scope, body: bytes, declared: Declared) -> bytes:
    """Return a digest of what a repetition shares with the first request: query, body, and headers of the request.

    An unknown header counts, as the application may read it. Headers that only the dependencies read identify the
    caller instead.
    """
    read = _without_route(declared)
    wanted = [(name, value) for name, value in scope["headers"] if _kind(name, read) is _Kind.REQUEST]
    return _digest([scope["query_string"], body, *_flat(wanted)])


class _Kind(Enum):
    """The meaning of a header."""

    CREDENTIAL = auto()
    PARTY = auto()
    ATTEMPT = auto()
    REQUEST = auto()


@lru_cache(256)
def _without_route(declared: Declared) -> Declared:
    return declared._replace(of_dependencies=declared.of_dependencies - declared.of_route)


def _kind(name: bytes, declared: Declared) -> _Kind:
    """Return the meaning of a header, which is looked for once unless the name is a long one of a stranger's."""
    return _known_kind(name, declared) if len(name) <= MAX_KNOWN_NAME else _kind_of(name, declared)


def _kind_of(name: bytes, declared: Declared) -> _Kind:
    word = name.decode("latin-1").replace("_", "-")
    if name in declared.secret_headers:
        return _Kind.CREDENTIAL
    if _PER_ATTEMPT.fullmatch(word):
        return _Kind.ATTEMPT
    if _PARTY.search(word):
        return _Kind.PARTY
    if name in declared.of_dependencies or _CREDENTIAL.search(word):
        return _Kind.CREDENTIAL
    return _Kind.REQUEST


_known_kind = lru_cache(1024)(_kind_of)


def principal(scope: Scope, *, internal: bool) -> str | None:
    """Return the verified caller: the context's user, or the user of Starlette's authentication; None without one.

    Args:
        scope: the scope of the request, with what its dependencies have added.
        internal: whether the callers are our own services, whose names are believed.
    """
    user_id = current().user_id
    if internal:
        callers = [
            value.decode("latin-1") for name, value in scope["headers"] if name == CALLER_HEADER.encode()
        ]
        if callers:
            return f"{user_id or ''}@{','.join(callers)}"
    if user_id is not None:
        return user_id
    user = scope.get("user")
    if not getattr(user, "is_authenticated", False):
        return None
    try:
        return str(user.identity) or None  # type: ignore[union-attr] # whatever the application made of it
    except (AttributeError, NotImplementedError):  # a display name is no identity: two users may share it
        return None


def _distinguishing_fields(scope: Scope, declared: Declared) -> tuple[list[bytes], list[bytes]]:
    """Return names and values that separate callers, and those that may prove who they are."""
    parties: list[tuple[bytes, bytes]] = []
    credentials: list[tuple[bytes, bytes]] = []
    for name, value in scope["headers"]:
        kind = _kind(name, declared)
        if kind is _Kind.PARTY:
            parties.append((name, value))
        elif kind is _Kind.CREDENTIAL:
            credentials.append((name, value))
    query = scope["query_string"].decode("latin-1")
    for word, text in parse_qsl(query) if query else ():
        plain = word.lower().replace("_", "-")
        if word in declared.secret_parameters or _CREDENTIAL_PARAMETER.fullmatch(plain):
            credentials.append((word.encode(), text.encode()))
    certificate = scope.get("extensions", {}).get("tls", {}).get("client_cert_name")
    if certificate is not None:
        credentials.append((b"client_cert_name", str(certificate).encode()))
    return _flat([*parties, *_scope_identities(scope)]), _flat(credentials)


def _scope_identities(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the facts about the caller that middleware has put into the scope."""
    facts = [("user", scope.get("user")), *scope.get("state", {}).items()]
    known = {name: value for name, value in facts if value is not None and _KNOWN.search(name)}
    named = ((name, _identity(value)) for name, value in known.items())
    return [(name.encode(), text.encode()) for name, text in named if text]


def _identity(value: Any) -> str | None:
    """Return the identity in a value that middleware has stored in any form, or None."""
    if isinstance(value, str | int | UUID):
        return str(value)
    members = cast("Mapping[str, Any] | None", value) if isinstance(value, Mapping) else None
    read = partial(getattr, value) if members is None else members.get
    for name in _IDENTITIES:
        with suppress(Exception):  # a property of the application's own
            found: object = read(name, None)
            if isinstance(found, str | int | UUID):
                return str(found)
    return None


def _flat(fields: list[tuple[bytes, bytes]]) -> list[bytes]:
    return [part for field in sorted(fields) for part in field]


def _host(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"host":
            host: str = value.decode("latin-1").lower()
            return host
    return ""


def _path(scope: Scope) -> str:
    """Return the one form of all paths to a place: `%7E` becomes `~`, and `%2f` becomes `%2F`, which is no `/`."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    if _PLAIN_PATH.fullmatch(raw):
        return raw.decode()
    return "/".join(quote(unquote_to_bytes(segment), safe="") for segment in raw.split(b"/"))


def _digest(parts: Iterable[bytes]) -> bytes:
    return hashlib.sha256(b"".join([b"%d:%b" % (len(part), part) for part in parts])).digest()
