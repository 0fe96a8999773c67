"""Keys of tokens: read from PEM or a JWK Set, named by their thumbprint, each for one algorithm.

The key decides the algorithm, and the token never does (RFC 8725, section 3.1): Ed25519 is `EdDSA`, P-256 is `ES256`,
RSA is `RS256`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jwt import PyJWK, PyJWTError
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from hybridkit.errors import DeclarationError

type Algorithm = Literal["EdDSA", "ES256", "RS256"]
type PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey
type PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey

MIN_RSA_BITS: Final = 2048
"""RFC 7518, section 3.3."""
MAX_KEYS: Final = 100
"""The most keys of a set that are read."""

_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)
_THUMBPRINT_MEMBERS: Final = {
    "OKP": ("crv", "kty", "x"),
    "EC": ("crv", "kty", "x", "y"),
    "RSA": ("e", "kty", "n"),
}
"""RFC 7638, section 3.2, and RFC 8037, section 2."""


class TokenRefusedError(Exception):
    """The reason why a token is refused, for the log; its sender learns only that it is."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key with its name.

    Attributes:
        kid: the name by which tokens refer to it.
        algorithm: the only algorithm that it verifies.
        public: the key.
    """

    kid: str
    algorithm: Algorithm
    public: PublicKey


class KeyRing:
    """The keys of an issuer of tokens: the first one signs, all of them verify.

    To change the key, add the new one at the end, wait until all verifiers have read the set, move it to the front, and
    remove the old one when its last token has expired.

    Args:
        pem: private keys as PEM, one after another; keys that only verify may be public ones.

    Raises:
        DeclarationError: the first key is not private, or a key can't be used. The message holds nothing of it.
    """

    def __init__(self, pem: str) -> None:
        blocks = [match.group(0) for match in _PEM.finditer(pem)]
        if not blocks:
            raise DeclarationError(
                "a key ring is one or several PEM keys; make one with: openssl genpkey -algorithm ed25519"
            )
        loaded = [_load(block) for block in blocks]
        first = loaded[0]
        if isinstance(first, Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey):
            raise DeclarationError("the first key of a ring signs, so it is a private one")
        keys = [_verifying(key) for key in loaded]
        self._keys = {key.kid: key for key in keys}
        self.kid = keys[0].kid
        """The name of the key that signs."""
        if len({key.algorithm for key in keys}) > 1:
            raise DeclarationError("all keys of a ring are of one kind: an issuer signs by one algorithm")
        self.algorithm: Algorithm = keys[0].algorithm
        """The algorithm of the key that signs."""
        self.signing = first
        """The private key that signs."""

    def __repr__(self) -> str:
        return f"KeyRing({self.algorithm}, {len(self._keys)} keys)"

    @classmethod
    def generated(cls) -> Self:
        """Return a ring with a new Ed25519 key, whose tokens nobody can verify after the process has ended."""
        private = Ed25519PrivateKey.generate()
        return cls(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())

    def key(self, kid: str) -> VerifyingKey:
        """Return the key of that name.

        Raises:
            TokenRefusedError: there is none.
        """
        if (found := self._keys.get(kid)) is None:
            raise TokenRefusedError("its key is not among ours")
        return found

    def jwks(self) -> dict[str, Any]:
        """Return the public keys as a JWK Set (RFC 7517), which is what others verify tokens by."""
        return {
            "keys": [
                {**_public_jwk(key.public), "kid": key.kid, "use": "sig", "alg": key.algorithm}
                for key in self._keys.values()
            ]
        }


def keys_of_jwks(document: object) -> Iterator[VerifyingKey]:
    """Yield the keys of a JWK Set that can verify tokens, and leave out all others.

    Left out are keys for encryption, symmetric and private ones, RSA below 2048 bits, and other curves.
    """
    members = cast("Mapping[str, object]", document).get("keys") if isinstance(document, Mapping) else None
    for member in cast("list[object]", members)[:MAX_KEYS] if isinstance(members, list) else ():
        if isinstance(member, dict) and (key := _of_jwk(cast("dict[str, Any]", member))) is not None:
            yield key


def _of_jwk(jwk: dict[str, Any]) -> VerifyingKey | None:
    if jwk.get("use", "sig") != "sig" or "d" in jwk:
        return None
    kid, algorithm = jwk.get("kid"), {"OKP": "EdDSA", "EC": "ES256", "RSA": "RS256"}.get(str(jwk.get("kty")))
    if (
        not isinstance(kid, str)
        or algorithm is None
        or jwk.get("alg", algorithm) not in {algorithm, "Ed25519"}
    ):
        return None
    try:
        public = PyJWK.from_dict(jwk, algorithm).key
        return VerifyingKey(kid, _algorithm_of(public), public)
    except (PyJWTError, DeclarationError, ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _load(pem: str) -> PrivateKey | PublicKey:
    key: Any
    try:
        key = (
            load_pem_private_key(pem.encode(), password=None)
            if "PRIVATE" in pem
            else load_pem_public_key(pem.encode())
        )
        _algorithm_of(key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # what the library says of a key is nobody's business
    if key is None:
        raise DeclarationError(
            "a PEM key of the ring can't be read: it is encrypted, damaged, or of another kind"
        )
    return key  # type: ignore[no-any-return] # checked by _algorithm_of


def _algorithm_of(key: object) -> Algorithm:
    """Return the algorithm of a key.

    Raises:
        DeclarationError: the key is too small, or of another kind.
    """
    match key:
        case Ed25519PrivateKey() | Ed25519PublicKey():
            return "EdDSA"
        case EllipticCurvePrivateKey() | EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            return "ES256"
        case RSAPrivateKey() | RSAPublicKey() if key.key_size >= MIN_RSA_BITS:
            return "RS256"
        case _:
            raise DeclarationError(
                f"a key of tokens is Ed25519, P-256, or RSA of at least {MIN_RSA_BITS} bits"
            )


def _verifying(key: PrivateKey | PublicKey) -> VerifyingKey:
    public = (
        key.public_key()
        if isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey)
        else key
    )
    jwk = _public_jwk(public)
    hashed = {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}
    digest = hashlib.sha256(json.dumps(hashed, separators=(",", ":"), sort_keys=True).encode()).digest()
    return VerifyingKey(base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), _algorithm_of(key), public)


def _public_jwk(key: PublicKey) -> dict[str, str]:
    match key:
        case Ed25519PublicKey():
            jwk = OKPAlgorithm.to_jwk(key, as_dict=True)
        case EllipticCurvePublicKey():
            jwk = ECAlgorithm.to_jwk(key, as_dict=True)
        case _:
            jwk = RSAAlgorithm.to_jwk(key, as_dict=True)
            jwk.pop("key_ops", None)
    return {name: str(value) for name, value in jwk.items()}
