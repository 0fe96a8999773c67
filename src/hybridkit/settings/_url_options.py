"""Check the query of a URL: an option that nothing would follow is refused by its name, at the start.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, parse_qsl

__all__ = [
    "DROPPED",
    "amqp_problems",
    "one_host_problems",
    "options_of",
    "postgres_problems",
    "redis_problems",
]

_POSTGRES_VALUES: Final[Mapping[str, frozenset[str]]] = {
    "sslmode": frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}),
    "sslnegotiation": frozenset({"postgres", "direct"}),
    "target_session_attrs": frozenset(
        {"any", "read-write", "read-only", "primary", "standby", "prefer-standby"}
    ),
    "channel_binding": frozenset({"disable", "prefer"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "load_balance_hosts": frozenset({"disable"}),
    "client_encoding": frozenset({"utf8", "UTF8", "utf-8", "UTF-8"}),
}
"""The values of each option that are followed; anything else is refused."""

DROPPED: Final = frozenset({"channel_binding", "gssencmode", "client_encoding", "load_balance_hosts"})
"""Options of libpq whose allowed values ask for nothing that the driver wouldn't do by itself."""

_WITH_NUMBER: Final = frozenset({"connect_timeout"})

_REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "keepalives",
            "keepalives_idle",
            "keepalives_interval",
            "keepalives_count",
            "tcp_user_timeout",
        ),
        "calls have deadlines, which find a dead connection sooner",
    ),
    **dict.fromkeys(
        (
            "fallback_application_name",
            "gssdelegation",
            "hostaddr",
            "krbspn",
            "oauth_issuer",
            "oauth_client_id",
            "oauth_client_secret",
            "oauth_scope",
            "replication",
            "require_auth",
            "requirepeer",
            "requiressl",
            "servicefile",
            "sslcertmode",
            "sslcompression",
            "sslcrldir",
            "sslkeylogfile",
            "sslsni",
            "min_protocol_version",
            "max_protocol_version",
            "scram_client_key",
            "scram_server_key",
        ),
        "the driver can't follow it",
    ),
}

_AMQP: Final = frozenset(
    {
        "auth",
        "cadata",
        "cafile",
        "capath",
        "certfile",
        "heartbeat",
        "keyfile",
        "name",
        "no_verify_ssl",
        "timeout",
    }
)
_AMQP_INSTEAD: Final[Mapping[str, str]] = {
    "cacertfile": "cafile",
    "connection_timeout": "timeout",
    "auth_mechanism": "auth",
    "verify": "no_verify_ssl",
}


def options_of(parts: SplitResult) -> list[tuple[str, str]]:
    """Return the options and their values, in their order; one without a value has an empty one."""
    return parse_qsl(parts.query, keep_blank_values=True)


def postgres_problems(parts: SplitResult) -> list[str]:
    """Return the problems of a PostgreSQL URL's options; names that libpq doesn't have are for the server to judge."""
    return [problem for name, value in options_of(parts) if (problem := _postgres_problem(name, value))]


def _postgres_problem(name: str, value: str) -> str:
    if name in _REFUSED:
        return f"has the option {name}, which isn't used: {_REFUSED[name]}; leave it out"
    if not value:
        return f"has the option {name} without a value"
    if name in _WITH_NUMBER and not value.isdecimal():
        return f"has the option {name}, which takes whole seconds"
    allowed = _POSTGRES_VALUES.get(name)
    if allowed is not None and value not in allowed:
        return f"has the option {name}, of which only {', '.join(sorted(allowed))} can be followed"
    return ""


def amqp_problems(parts: SplitResult) -> list[str]:
    """Return the problems of a RabbitMQ URL's options."""
    found: list[str] = []
    for name, value in options_of(parts):
        if name not in _AMQP:
            instead = f"; say {_AMQP_INSTEAD[name]}" if name in _AMQP_INSTEAD else ""
            found.append(f"has the option {name}, which isn't used{instead}")
        elif name in {"heartbeat", "timeout"} and not value.isdecimal():
            found.append(f"has the option {name}, which takes whole seconds")
        elif not value:
            found.append(f"has the option {name} without a value")
    return found


def one_host_problems(parts: SplitResult) -> list[str]:
    """Return the problems of a URL that has to lead to one server."""
    hosts = parts.netloc.rpartition("@")[2]
    return ["names several hosts, and only one can be used"] if "," in hosts else []


_MASTER_PATH: Final = re.compile(r"/[A-Za-z0-9._-]+(/[0-9]*)?")
_NO_MASTER: Final = (
    "names no master, or one with a database that is no number: it should end in the name that the sentinels know,"
    " as in redis+sentinel://a:26379,b:26379/mymaster/0"
)


def redis_problems(parts: SplitResult) -> list[str]:
    """Return the problems of the hosts and the path of a Redis URL."""
    match parts.scheme.partition("+")[2]:
        case "sentinel" if not _MASTER_PATH.fullmatch(parts.path):
            return [_NO_MASTER]
        case "cluster" if parts.path not in {"", "/", "/0"}:
            return ["names a database, and a cluster has only number 0: leave the path out"]
        case "":
            return one_host_problems(parts)
        case _:
            return []
