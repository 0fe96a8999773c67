"""The client's address and scheme behind proxies, from what trusted proxies say, and nobody else.

A client may send `X-Forwarded-For` itself; a proxy appends the address that it sees. So the list is read from its end,
over as many entries as trusted proxies have written. `Forwarded` and `X-Forwarded-Host` are never read: a proxy that
does not write them passes on what its client has sent. Proxies have to pass `Host`.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from hybridkit._asgi_types import Scope
from hybridkit._header_fields import Fields

MAX_HOPS: Final = 32
"""How many entries are read at most; a longer list is a client's invention."""
_FORWARDED_FOR: Final = "x-forwarded-for"
_FORWARDED_PROTO: Final = "x-forwarded-proto"
_SCHEMES: Final = frozenset({"http", "https"})


class TrustedProxies:
    """The proxies in front, by their networks, or by their number where nobody else reaches the port.

    Args:
        networks: the networks of the proxies.
        hops: their number, in place of networks.
    """

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network] = (), *, hops: int = 0) -> None:
        self._networks = tuple(networks)
        self._hops = hops
        self._is_trusted = lru_cache(maxsize=1024)(self._is_in_networks)

    def __repr__(self) -> str:
        return f"TrustedProxies({[str(network) for network in self._networks]}, hops={self._hops})"

    def apply(self, scope: Scope, fields: Fields) -> None:
        """Set the client and the scheme of a scope to what the trusted proxies say.

        A request past the proxies, and one whose list they have not written, keeps the address of its connection.

        Args:
            scope: the scope, which is changed.
            fields: its header fields.
        """
        forwarded = fields.listed(_FORWARDED_FOR)
        if forwarded is None:
            return
        client: tuple[str, int] | None = scope.get("client")
        peer = client[0] if client else ""
        chain = [each.strip() for each in forwarded.rsplit(",", MAX_HOPS)[-MAX_HOPS:]]
        hops = self._hops_of(peer, chain)
        address = _address(chain[-hops]) if hops else None
        if address is None:
            return
        scope["client"] = (str(address), 0)
        schemes = (fields.listed(_FORWARDED_PROTO) or "").lower().split(",")
        scheme = schemes[-min(hops, len(schemes))].strip()
        if scheme in _SCHEMES:
            scope["scheme"] = scheme

    def _hops_of(self, peer: str, chain: Sequence[str]) -> int:
        """Return how many entries at the end of the list trusted proxies have written; 0 for a list of others."""
        if self._hops:
            return self._hops if len(chain) >= self._hops else 0
        if not self._is_trusted(peer):
            return 0
        hops = 1
        while hops < len(chain) and self._is_trusted(chain[-hops]):
            hops += 1
        # An entry that is no address was sent by the client: the proxy after it is as far as one can see.
        return hops if _address(chain[-hops]) is not None else hops - 1

    def _is_in_networks(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._networks)


@lru_cache(maxsize=1024)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address in an entry of the list, which may have a port; None where there is none."""
    host = text
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
