"""Read the keys of service tokens: a secret that both sides share, or an Ed25519 key as PEM.

They are read here, below what signs and verifies with them, so that a process that has a bad one fails at its start.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import combinations
from typing import TYPE_CHECKING, Final

from hybridkit.errors import DeclarationError, MissingExtraError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["MIN_SECRET_BYTES", "signing_key", "verifying_keys"]

MIN_SECRET_BYTES: Final = 32
"""The shortest secret: as long as the hash, RFC 7518, section 3.2."""
_ADVICE: Final = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


def signing_key(text: str) -> "Ed25519PrivateKey | bytes":
    """Read the key with which a service makes its tokens: its private key, or its secret.

    Raises:
        DeclarationError: the key can't be used; the message holds nothing of it.
        MissingExtraError: the extra `security` is not installed.
    """
    _need_extra()
    if not _is_pem(text):
        return _secret(text)
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - an extra of its own
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingExtraError("a PEM key", extra="security") from None
    try:
        key = load_pem_private_key(text.encode(errors="replace"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # what the library says of a key is nobody's business
    if not isinstance(key, Ed25519PrivateKey):
        raise DeclarationError("a PEM key that signs has to be an Ed25519 private key without a password")
    return key


def verifying_keys(texts: Mapping[str, str]) -> "dict[str, Ed25519PublicKey | bytes]":
    """Read the keys by which services are known: for each name its public key, or the secret.

    Raises:
        DeclarationError: keys can't be used; the message has the reasons for all of them, and nothing of the keys.
        MissingExtraError: there are keys, and the extra `security` is not installed.
    """
    if texts:
        _need_extra()
    keys: dict[str, Ed25519PublicKey | bytes] = {}
    problems: list[str] = []
    for name, text in texts.items():
        try:
            keys[name] = _verifying_key(text)
        except DeclarationError as error:
            problems.append(f"the key of {name} can't be used: {error}")
    problems += _shared(keys)
    if problems:
        raise DeclarationError("; and ".join(problems))
    return keys


def _need_extra() -> None:
    """Check at the start, by the setting's name, that what makes tokens of a key is installed."""
    if find_spec("jwt") is None:
        raise MissingExtraError("a service token key", extra="security")


def _verifying_key(text: str) -> "Ed25519PublicKey | bytes":
    if not _is_pem(text):
        return _secret(text)
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - an extra of its own
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingExtraError("a PEM key", extra="security") from None
    try:
        key = load_pem_public_key(text.encode(errors="replace"))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise DeclarationError("a PEM key that a caller is known by has to be its Ed25519 public key")
    return key


def _shared(keys: "Mapping[str, Ed25519PublicKey | bytes]") -> Iterator[str]:
    for (one, key), (other, same) in combinations(keys.items(), 2):
        if key == same:
            yield f"{one} and {other} have the same key, so that each could pose as the other"


def _secret(text: str) -> bytes:
    octets = text.encode(errors="surrogatepass")  # a variable of the environment may be no UTF-8
    if len(octets) < MIN_SECRET_BYTES:
        raise DeclarationError(f"a shared secret has at least {MIN_SECRET_BYTES} bytes; {_ADVICE}")
    return octets


def _is_pem(text: str) -> bool:
    return text.lstrip().startswith("-----BEGIN")
