"""Names and certificates of the hosts in a URL."""

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from hybridkit._cli._checks._finding import CHECK_SECONDS, Finding

SLOW_DNS_SECONDS: Final = 0.1
EXPIRES_SOON_DAYS: Final = 21

_PORTS: Final = {
    "http": 80,
    "https": 443,
    "amqp": 5672,
    "amqps": 5671,
    "redis": 6379,
    "rediss": 6379,
    "postgresql": 5432,
    "mongodb": 27017,
}
_ENCRYPTED: Final = frozenset({"https", "amqps", "rediss"})
_CA_OPTIONS: Final = ("sslrootcert", "cafile", "tlsCAFile", "ssl_ca_certs")
_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
"""The request of PostgreSQL's protocol to go on in TLS: https://www.postgresql.org/docs/current/protocol-flow.html"""


@dataclass(frozen=True, slots=True)
class _Place:
    host: str
    port: int
    scheme: str
    is_encrypted: bool
    ca_file: str | None


async def check_network(check: str, url: str) -> Sequence[Finding]:
    """Look up the hosts of a URL, and read the certificate of each where the URL asks for TLS.

    Args:
        check: the name of the dependency, with which the names of the checks begin.
        url: a URL of any of the settings.
    """
    found: list[Finding] = []
    for place in _places(url):
        found += await _name(f"{check}.dns", place.host)
        if place.is_encrypted:
            found.append(await asyncio.to_thread(_certificate, f"{check}.tls", place))
    return found


def _places(url: str) -> Sequence[_Place]:
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    encrypted = (
        scheme in _ENCRYPTED
        or options.get("sslmode") in {"require", "verify-ca", "verify-full"}
        or "true" in (options.get("tls"), options.get("ssl"))
    )
    ca_file = next((options[name] for name in _CA_OPTIONS if name in options), None)
    places: list[_Place] = []
    for address in filter(None, parts.netloc.rpartition("@")[2].split(",")):
        one = urlsplit(f"//{address}")
        if one.hostname and scheme in _PORTS:
            places.append(_Place(one.hostname, one.port or _PORTS[scheme], scheme, encrypted, ca_file))
    return places


async def _name(check: str, host: str) -> Sequence[Finding]:
    with suppress(ValueError):
        ip_address(host)
        return []
    since = time.monotonic()
    try:
        await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError as error:
        advice = "correct the host in the URL, or the resolver of this machine"
        return [Finding(level="problem", check=check, detail=f"{host}: {error.strerror}", advice=advice)]
    seconds = time.monotonic() - since
    detail = f"{host} is found in {seconds * 1000:.1f} ms"
    if seconds < SLOW_DNS_SECONDS:
        return [Finding(level="ok", check=check, detail=detail)]
    advice = "look at the resolver: each new connection waits for it"
    return [Finding(level="warning", check=check, detail=detail, advice=advice)]


def _certificate(check: str, place: _Place) -> Finding:
    where = f"{place.host}:{place.port}"
    context = ssl.create_default_context(cafile=place.ca_file)
    try:
        with socket.create_connection((place.host, place.port), CHECK_SECONDS) as plain:
            if place.scheme == "postgresql":
                plain.sendall(_SSL_REQUEST)
                if plain.recv(1) != b"S":
                    advice = "turn TLS on there (ssl = on)"
                    return Finding(level="problem", check=check, detail=f"{where} has no TLS", advice=advice)
            with context.wrap_socket(plain, server_hostname=place.host) as encrypted:
                return _expiry(check, where, encrypted.getpeercert())
    except ssl.SSLCertVerificationError as error:
        advice = "renew the certificate, or name the authority that signed it"
        return Finding(level="problem", check=check, detail=f"{where}: {error.verify_message}", advice=advice)
    except OSError as error:
        return Finding(
            level="problem", check=check, detail=f"{where}: {error}", advice="see whether it listens with TLS"
        )


def _expiry(check: str, where: str, certificate: Any) -> Finding:
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])  # it is there, as the certificate was verified
    left = datetime.fromtimestamp(ends, UTC) - datetime.now(UTC)
    detail = f"the certificate of {where} is valid for {left.days} more days"
    if left.days >= EXPIRES_SOON_DAYS:
        return Finding(level="ok", check=check, detail=detail)
    return Finding(
        level="warning", check=check, detail=detail, advice="renew it, and see why that isn't automatic"
    )
