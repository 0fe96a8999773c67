"""The client's address and scheme behind proxies: the lists that clients make up, and those that proxies write."""

from ipaddress import ip_network
from typing import Any, NamedTuple

import pytest

from hybridkit._header_fields import Fields
from hybridkit.adapters._http._proxies import TrustedProxies

CLIENT, OTHER = "203.0.113.7", "198.51.100.9"
EDGE, INNER = "10.0.0.1", "10.0.0.2"
BY_NETWORK = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
BY_HOPS = TrustedProxies(hops=2)


class Attempt(NamedTuple):
    peer: str | None
    forwarded: list[str]
    seen: str | None
    """The address in the scope afterwards; None for that of the connection."""
    proto: str = ""
    scheme: str = "http"


def applied(proxies: TrustedProxies, attempt: Attempt, *others: tuple[bytes, bytes]) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", line.encode()) for line in attempt.forwarded]
    headers += [(b"x-forwarded-proto", attempt.proto.encode())] if attempt.proto else []
    scope: dict[str, Any] = {
        "client": (attempt.peer, 4711) if attempt.peer is not None else None,
        "scheme": "http",
        "headers": [*headers, *others],
    }
    proxies.apply(scope, Fields(scope["headers"]))
    return scope


@pytest.mark.parametrize(
    "attempt",
    [
        # honest proxies
        Attempt(EDGE, [CLIENT], CLIENT, "https", "https"),
        Attempt(INNER, [f"{CLIENT}, {EDGE}"], CLIENT, "https, http", "https"),
        Attempt(INNER, [CLIENT, EDGE], CLIENT),
        Attempt(EDGE, [f"{CLIENT}:5123"], CLIENT),
        Attempt(EDGE, ["[2001:db8::1]:443"], "2001:db8::1"),
        Attempt(EDGE, ["2001:db8::1"], "2001:db8::1"),
        Attempt(EDGE, ["::ffff:203.0.113.7"], CLIENT),
        Attempt("::ffff:10.0.0.1", [CLIENT], CLIENT),
        Attempt("fd00::7", [CLIENT], CLIENT),
        Attempt(INNER, [EDGE], EDGE),  # a health check of the outer proxy
        # clients that write the header themselves
        Attempt(CLIENT, [OTHER], None, "https"),
        Attempt(CLIENT, ["10.0.0.9"], None, "https"),
        Attempt(EDGE, [f"{OTHER}, {CLIENT}"], CLIENT, "https, http", "http"),
        Attempt(EDGE, [f"10.0.0.9, {CLIENT}"], CLIENT),
        Attempt(EDGE, [f"127.0.0.1, {OTHER}, {CLIENT}"], CLIENT),
        Attempt(INNER, [f"{OTHER}, {CLIENT}, {EDGE}"], CLIENT, "https, http, http", "http"),
        Attempt(EDGE, [OTHER, CLIENT], CLIENT),
        Attempt(INNER, [f"10.0.0.9, nonsense, {EDGE}"], EDGE),
        Attempt(INNER, [f"unknown, {EDGE}"], EDGE),
        Attempt(EDGE, ["unknown"], None),
        Attempt(EDGE, [""], None),
        Attempt(EDGE, [", , "], None),
        Attempt(EDGE, ["203.0.113.7\\r\\nx"], None),
        Attempt(EDGE, ["1" * 5000], None),
        Attempt(EDGE, [",".join(["10.0.0.1"] * 5000)], "10.0.0.1"),
        # no address of the connection, as on a Unix socket
        Attempt(None, [CLIENT], None),
        # schemes
        Attempt(EDGE, [CLIENT], CLIENT, "javascript", "http"),
        Attempt(EDGE, [CLIENT], CLIENT, "HTTPS", "https"),
        Attempt(EDGE, [CLIENT], CLIENT, "http, https", "https"),
    ],
)
def test_only_entries_that_trusted_networks_have_written_count(attempt: Attempt) -> None:
    """The list is read from its end, up to the first address that is no proxy's."""
    scope = applied(BY_NETWORK, attempt)
    assert scope["client"] == ((attempt.seen, 0) if attempt.seen else applied_not(attempt))
    assert scope["scheme"] == attempt.scheme


def applied_not(attempt: Attempt) -> tuple[str, int] | None:
    return None if attempt.peer is None else (attempt.peer, 4711)


@pytest.mark.parametrize(
    "attempt",
    [
        Attempt(INNER, [f"{CLIENT}, {EDGE}"], CLIENT, "https, http", "https"),
        Attempt(INNER, [f"{OTHER}, {CLIENT}, {EDGE}"], CLIENT),
        Attempt(None, [f"{CLIENT}, {EDGE}"], CLIENT),
        Attempt(INNER, [CLIENT], None, "https"),  # past one of both
        Attempt(INNER, [f"unknown, {EDGE}"], None),
        Attempt(INNER, [], None, "https"),
    ],
)
def test_a_number_of_proxies_counts_from_the_end(attempt: Attempt) -> None:
    """A shorter list did not pass them all, and is not believed."""
    scope = applied(BY_HOPS, attempt)
    assert scope["client"] == ((attempt.seen, 0) if attempt.seen else applied_not(attempt))
    assert scope["scheme"] == attempt.scheme


def test_headers_that_proxies_pass_on_are_never_read() -> None:
    """`Forwarded`, `X-Forwarded-Host` and the like, which a client may send through a proxy, change nothing."""
    invented = [
        (b"forwarded", b"for=198.51.100.9;proto=https;host=evil.example"),
        (b"x-forwarded-host", b"evil.example"),
        (b"x-forwarded-port", b"1"),
        (b"x-real-ip", b"198.51.100.9"),
        (b"true-client-ip", b"198.51.100.9"),
        (b"host", b"api.example"),
    ]
    scope = applied(BY_NETWORK, Attempt(EDGE, [CLIENT], CLIENT), *invented)
    assert scope["client"] == (CLIENT, 0)
    assert (scope["scheme"], dict(scope["headers"])[b"host"]) == ("http", b"api.example")


def test_proxies_are_shown_by_their_networks() -> None:
    """The networks are no secret."""
    assert repr(BY_NETWORK) == "TrustedProxies(['10.0.0.0/8', 'fd00::/8'], hops=0)"
