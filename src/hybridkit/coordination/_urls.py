"""URLs of Redis: one server, a master that sentinels know, or a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from hybridkit.errors import SettingsError
from hybridkit.settings._url_options import redis_problems

type Kind = Literal["server", "sentinel", "cluster"]
type Address = tuple[str, int]
"""A host and a port."""

_DEFAULT_PORTS: Final[Mapping[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_UNUSABLE: Final = "the Redis URL can't be used"
_OF_SENTINELS: Final = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class Target:
    """The place that a URL leads to.

    Attributes:
        kind: one server, a master found by sentinels, or a cluster.
        plain_url: a URL that redis-py reads, with all options; its host is the first of `addresses`.
        addresses: the sentinels, or the nodes of the cluster that are asked first; empty for one server.
        master: the name under which the sentinels know the master.
        sentinel_options: the credentials of the sentinels themselves.
    """

    kind: Kind
    plain_url: str
    addresses: Sequence[Address] = ()
    master: str = ""
    sentinel_options: Mapping[str, str] = field(default_factory=dict[str, str])


def target_of(url: str) -> Target:
    """Return the place that a URL leads to.

    Raises:
        SettingsError: the URL has no host or no name of a master, or names a database that there can't be; the message
            never has the URL, which may carry a password.
    """
    kind = url.partition("://")[0].partition("+")[2]
    if kind not in {"sentinel", "cluster"}:
        return Target("server", url)
    of_kind: Kind = "sentinel" if kind == "sentinel" else "cluster"
    try:
        parts = urlsplit(url)
        addresses = _addresses(parts, _DEFAULT_PORTS[of_kind])
    except ValueError:  # its message may quote the password
        raise SettingsError(_UNUSABLE, problems=["has a host or a port that can't be read"]) from None
    if problems := redis_problems(parts):
        raise SettingsError(_UNUSABLE, problems=problems)
    if not addresses or "@" in parts.path + parts.query:
        raise SettingsError(
            _UNUSABLE, problems=["names no host, or has a password with an unescaped / ? # or @"]
        )
    master, _, database = parts.path.strip("/").partition("/") if of_kind == "sentinel" else ("", "", "0")
    options = parse_qsl(parts.query)
    user, at, _ = parts.netloc.rpartition("@")
    host, port = addresses[0]
    plain = parts._replace(
        scheme=parts.scheme.partition("+")[0],
        netloc=f"{user}{at}{f'[{host}]' if ':' in host else host}:{port}",
        path=f"/{database or 0}",
        query=urlencode([(name, value) for name, value in options if name not in _OF_SENTINELS]),
    )
    of_sentinels = {name.removeprefix("sentinel_"): value for name, value in options if name in _OF_SENTINELS}
    return Target(of_kind, plain.geturl(), addresses, master, of_sentinels)


def _addresses(parts: SplitResult, default_port: int) -> list[Address]:
    found = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
    return [(each.hostname, each.port or default_port) for each in found if each.hostname]
