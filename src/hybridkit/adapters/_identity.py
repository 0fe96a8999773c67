"""Which request a key stands for: whose, to what, and in which form its answer is wanted.

Somebody else's key is another key, and nobody learns of it; the same caller's key with another request is a mistake
that is told.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, cast
from urllib.parse import parse_qsl, quote
from uuid import UUID

from hybridkit.context import current
from hybridkit.contract import CALLER_HEADER
from hybridkit.idempotency import claim_key

__all__ = ["UNDECLARED", "Declared", "claim_name", "request_payload"]

type Scope = Mapping[str, Any]

_CREDENTIAL = re.compile(
    r"auth|token|api-?key|access-?key|secret|session|signature|credential|passw|cert|cookie|jwt|assertion|principal"
    r"|identity|subject|client-?(?:id|name)|app-?id|init-data|user-?name"
    r"|(?:^|-)(?:user|uid|key|sid|pin|otp|login|email|badge|ticket)(?:-|$)|(?:^|-)client$"
)
_PARTY = re.compile(
    r"tenant|account|organi[sz]ation|workspace|company|customer|realm|impersonat|on-behalf|forwarded-host"
    r"|(?:^|-)(?:org|orgid|team|project|shop|store|site|domain|roles?|scopes?|groups?|as|member|actor|caller|consumer"
    r"|merchant|partner|vendor|seller|owner|employee|player|wallet|device)(?:-|$)"
)
_NEITHER = re.compile(r"csrf|xsrf|user-agent|^idempotency-key$|^sec-")
_OF_ONE_ATTEMPT = re.compile(
    r"(?:^|-)(?:request-id|correlation|trace\w*|span|baggage|sentry|retry|attempts?|timeout|deadline|date|timestamp|nonce"
    r"|dpop|forwarded|real-ip|client-ip|referer|origin)(?:-|$)|^(?:via|connection|content-length|cache-control|pragma)$"
)
_KNOWN = re.compile(
    r"(?:^|_)(?:user|auth|principal|identity|subject|claims|caller|actor|member|account|tenant|org|organi[sz]ation)(?:_|$)"
)
"""Names under which middleware puts what it has found out about the caller."""
_IDENTITIES: Final = ("identity", "id", "sub", "user_id", "uid", "username", "email")
_CREDENTIAL_PARAMETER = re.compile(
    r"(?:api|access|auth|session)?-?(?:key|token|auth|session|sid|jwt|sig|signature)(?:-id)?"
)

_NEGOTIATED: Final = frozenset(
    {
        b"accept",
        b"accept-charset",
        b"accept-encoding",
        b"accept-language",
        b"accept-version",
        b"api-version",
        b"content-encoding",
        b"content-language",
        b"content-type",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-unmodified-since",
        b"prefer",
        b"range",
        b"x-api-version",
        b"x-currency",
        b"x-http-method",
        b"x-http-method-override",
        b"x-lang",
        b"x-language",
        b"x-locale",
        b"x-method-override",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-time-zone",
        b"x-timezone",
    }
)


class Declared(NamedTuple):
    """What a route says that it reads of a request, beyond what every request may have.

    Attributes:
        secret_headers: those that hold API keys; in lower case, as all of these.
        secret_parameters: of the query, as they are written.
        of_dependencies: headers that its dependencies take, to find out who calls or otherwise.
        of_route: headers that its function takes.
    """

    secret_headers: frozenset[bytes] = frozenset()
    secret_parameters: frozenset[str] = frozenset()
    of_dependencies: frozenset[bytes] = frozenset()
    of_route: frozenset[bytes] = frozenset()


UNDECLARED: Final = Declared()


def claim_name(scope: Scope, key: str, declared: Declared, *, internal: bool) -> str:
    """The claim of that key: of this caller, for this method, host and path.

    The caller is the verified principal, where there is one: the context's user, or the user of Starlette's
    authentication. Otherwise it is all that could prove who it is: `Authorization`, cookies, API keys, sessions, the
    client's certificate. What else parts callers from each other always counts: a tenant, and what middleware has put
    into the scope about them. None of it can be read from the name.

    Args:
        scope: of the request, as far as it has come: what its dependencies found out counts.
        key: the caller's.
        declared: what the route reads.
        internal: the callers are our own services, which are who they say they are.
    """
    principal = _principal(scope, internal=internal)
    parties, credentials = _tell_apart(scope, declared)
    raw_path = scope.get("raw_path")
    path = quote(scope["path"]) if raw_path is None else raw_path.decode("latin-1")
    what = [scope["method"], _host(scope), path, key]
    if parties:
        what.append(_digest(parties).hex())
    if principal is not None:
        who = f"user.{principal}"
    elif credentials:  # what is weak, such as a password, is told by no hash that has no salt
        who = f"credentials.{_digest([*credentials, *(part.encode() for part in what)]).hex()}"
    else:
        who = "anonymous"
    return claim_key("http", who, *what)


def request_payload(scope: Scope, body: bytes, declared: Declared, *, internal: bool) -> bytes:
    """What a repetition has in common with the first request: query, body, wishes, and headers that its route reads.

    Those that its dependencies read don't count once they have found out who calls.
    """
    read = declared.of_route
    if _principal(scope, internal=internal) is None:
        read |= declared.of_dependencies
    read = frozenset(name for name in read - declared.secret_headers if not _is_of_caller_or_attempt(name))
    wanted = sorted((name, value) for name, value in scope["headers"] if name in _NEGOTIATED or name in read)
    return _digest([scope["query_string"], body, *(part for field in wanted for part in field)])


def _is_of_caller_or_attempt(name: bytes) -> bool:
    kinds = (_NEITHER, _OF_ONE_ATTEMPT, _PARTY, _CREDENTIAL)
    return any(kind.search(_word(name)) for kind in kinds)


def _word(name: bytes) -> str:
    return name.decode("latin-1").replace("_", "-")


def _principal(scope: Scope, *, internal: bool) -> str | None:
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
    except (AttributeError, NotImplementedError):  # a name to show is no identity: two users may share it
        return None


def _tell_apart(scope: Scope, declared: Declared) -> tuple[list[bytes], list[bytes]]:
    """Names and values of what parts callers from each other, and of what may prove who they are."""
    parties: list[tuple[bytes, bytes]] = []
    credentials: list[tuple[bytes, bytes]] = []
    for name, value in scope["headers"]:
        word = _word(name)
        if name in declared.secret_headers:
            credentials.append((name, value))
        elif _NEITHER.search(word):
            continue
        elif _PARTY.search(word):
            parties.append((name, value))
        elif _CREDENTIAL.search(word):
            credentials.append((name, value))
    for word, text in parse_qsl(scope["query_string"].decode("latin-1")):
        kind = word.lower().replace("_", "-")
        if word in declared.secret_parameters or _CREDENTIAL_PARAMETER.fullmatch(kind):
            credentials.append((word.encode(), text.encode()))
    certificate = scope.get("extensions", {}).get("tls", {}).get("client_cert_name")
    if certificate is not None:
        credentials.append((b"client_cert_name", str(certificate).encode()))
    return _flat([*parties, *_found_out(scope)]), _flat(credentials)


def _found_out(scope: Scope) -> list[tuple[bytes, bytes]]:
    """What middleware has put into the scope about the caller."""
    known = {"user": scope.get("user"), **scope.get("state", {})}
    named = ((name, _identity(value)) for name, value in known.items() if _KNOWN.search(name))
    return [(name.encode(), text.encode()) for name, text in named if text]


def _identity(value: Any) -> str | None:
    """Who that is, in whatever form middleware has put it there; None where nothing says it."""
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
    return next((value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"), "")


def _digest(parts: Iterable[bytes]) -> bytes:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(b"%d:" % len(part))
        hashed.update(part)
    return hashed.digest()
