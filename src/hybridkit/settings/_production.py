"""Refuse what production must not start with: placeholders, short secrets, unencrypted connections to other hosts."""

import re
from collections.abc import Iterator, Mapping
from typing import Final, cast
from urllib.parse import SplitResult, parse_qs, unquote

from pydantic import SecretStr

from hybridkit.settings._secret_url import SecretUrl, refused, split

MIN_SECRET_LENGTH: Final = 12

_LOOPBACK: Final = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]+)?")
_TLS_SCHEMES: Final = {
    "amqp": "amqps",
    "http": "https",
    "redis": "rediss",
    "redis+cluster": "rediss+cluster",
    "redis+sentinel": "rediss+sentinel",
}
_TLS_PARAMETERS: Final = ("sslmode", "ssl", "tls")
_TLS_VALUES: Final = frozenset({"1", "require", "true", "verify-ca", "verify-full"})
_PLACEHOLDERS: Final = frozenset(
    {
        "admin",
        "default",
        "guest",
        "passwd",
        "password",
        "postgres",
        "rabbitmq",
        "root",
        "secret",
        "test",
        "todo",
    }
)
_PLACEHOLDER_PARTS: Final = (
    "changeit",
    "changeme",
    "changethis",
    "placeholder",
    "replaceme",
    "yourpass",
    "yoursecret",
)
_ADVICE: Final = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


def check_for_production(value: object, *, allow_plaintext: bool) -> None:
    """Refuse a value that a production process must not start with.

    Raises:
        PydanticCustomError: the value is refused, with all reasons and remedies, and without the value.
    """
    reasons: list[str] = []
    if isinstance(value, SecretStr):
        weakness = _weakness(value.get_secret_value())
        reasons += [f"is {weakness}"] if weakness else []
    if isinstance(value, dict):
        reasons += _weak_members(cast("dict[str, object]", value))
    parts = split(value.get_secret_value()) if isinstance(value, SecretUrl) else None
    if parts is not None:
        reasons += _reasons_against(parts, allow_plaintext=allow_plaintext)
    if reasons:
        raise refused("; and ".join(reasons))


def _weak_members(members: Mapping[str, object]) -> Iterator[str]:
    for name, member in members.items():
        weakness = _weakness(member.get_secret_value()) if isinstance(member, SecretStr) else None
        if weakness:
            yield f"has for {name} {weakness}"


def _reasons_against(parts: SplitResult, *, allow_plaintext: bool) -> Iterator[str]:
    user, _, hosts = parts.netloc.rpartition("@")
    _, colon, password = user.partition(":")
    weakness = _weakness(unquote(password)) if colon else None
    if weakness:
        yield f"has a password that is {weakness}"
    local = not hosts or all(map(_LOOPBACK.fullmatch, hosts.split(",")))
    remedy = None if local or allow_plaintext else _tls_remedy(parts)
    if remedy:
        yield (
            f"is not encrypted, which production refuses; {remedy},"
            " or set ALLOW_PLAINTEXT_URLS=true if the network itself is trusted"
        )


def _weakness(secret: str) -> str | None:
    letters = re.sub(r"[^a-z0-9]", "", secret.lower())
    if (
        letters in _PLACEHOLDERS
        or len(set(secret)) < 4
        or any(part in letters for part in _PLACEHOLDER_PARTS)
    ):
        return f"a placeholder, which production refuses; {_ADVICE}"
    if len(secret) < MIN_SECRET_LENGTH:
        return f"shorter than the {MIN_SECRET_LENGTH} characters that production wants; {_ADVICE}"
    return None


def _tls_remedy(parts: SplitResult) -> str | None:
    if parts.scheme in _TLS_SCHEMES:
        return f"use {_TLS_SCHEMES[parts.scheme]}://"
    if parts.scheme == "mongodb" or parts.scheme.startswith("postgres"):
        parameters = parse_qs(parts.query)
        if not any(_TLS_VALUES.intersection(parameters.get(name, ())) for name in _TLS_PARAMETERS):
            return f"add ?{'tls=true' if parts.scheme == 'mongodb' else 'sslmode=verify-full'}"
    return None
