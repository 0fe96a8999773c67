"""Which request a key stands for: whose, to what, and in which form its answer is wanted.

Somebody else's key is another key, and nobody learns of it; the same caller's key with another request is a mistake
that is told.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote

from hybridkit.context import current
from hybridkit.contract import CALLER_HEADER
from hybridkit.idempotency import claim_key

__all__ = ["claim_name", "request_payload"]

type Scope = Mapping[str, Any]

_CREDENTIAL = re.compile(
    r"auth|token|api-?key|access-?key|secret|session|signature|credential|passw|cert|cookie|jwt|assertion|principal"
    r"|identity|subject|client-?id|app-?id|(?:^|-)(?:user|key|sid|pin|otp|login|email)(?:-|$)"
)
_PARTY = re.compile(
    r"tenant|account|organi[sz]ation|workspace|company|customer|realm|impersonat|on-behalf|forwarded-host"
    r"|(?:^|-)(?:org|orgid|team|project|shop|store|site|domain|roles?|scopes?|groups?|as)(?:-|$)"
)
_NEITHER = re.compile(r"csrf|xsrf|user-agent|^idempotency-key$|^sec-")
_CREDENTIAL_PARAMETER = re.compile(
    r"(?:api|access|auth|session)?-?(?:key|token|auth|session|sid|jwt|sig|signature)(?:-id)?"
)

_NEGOTIATED: Final = frozenset(
    {
        b"accept",
        b"accept-charset",
        b"accept-encoding",
        b"accept-language",
        b"content-encoding",
        b"content-language",
        b"content-type",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-unmodified-since",
        b"prefer",
        b"range",
        b"x-http-method-override",
    }
)


def claim_name(scope: Scope, key: str, *, internal: bool) -> str:
    """The claim of that key: of this caller, for this method, host and path.

    The caller is the verified principal, where there is one: the context's user, or the user of Starlette's
    authentication. Otherwise it is all that could prove who it is: `Authorization`, cookies, API keys, sessions. What
    else parts callers from each other, such as a tenant, always counts. None of it can be read from the name.

    Args:
        scope: of the request, as far as it has come: what its dependencies found out counts.
        key: the caller's.
        internal: the callers are our own services, which are who they say they are.
    """
    principal = _principal(scope, internal=internal)
    parties, credentials = _tell_apart(scope)
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


def request_payload(scope: Scope, body: bytes) -> bytes:
    """What a repetition has in common with the first request: query, body, and the form that was asked for."""
    wanted = sorted((name, value) for name, value in scope["headers"] if name in _NEGOTIATED)
    return _digest([scope["query_string"], body, *(part for field in wanted for part in field)])


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


def _tell_apart(scope: Scope) -> tuple[list[bytes], list[bytes]]:
    """Names and values of what parts callers from each other, and of what may prove who they are."""
    parties: list[tuple[bytes, bytes]] = []
    credentials: list[tuple[bytes, bytes]] = []
    for name, value in scope["headers"]:
        word = name.decode("latin-1").replace("_", "-")
        if _NEITHER.search(word):
            continue
        if _PARTY.search(word):
            parties.append((name, value))
        elif _CREDENTIAL.search(word):
            credentials.append((name, value))
    for word, text in parse_qsl(scope["query_string"].decode("latin-1")):
        if _CREDENTIAL_PARAMETER.fullmatch(word.lower().replace("_", "-")):
            credentials.append((word.encode(), text.encode()))
    return _flat(parties), _flat(credentials)


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
