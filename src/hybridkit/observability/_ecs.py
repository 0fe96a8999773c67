"""Names and types of the Elastic Common Schema, as far as an application's log lines may use them.

An index with the schema's template and `dynamic: strict` refuses a line with any other name, or a value of another
type: https://www.elastic.co/docs/reference/ecs/ecs-field-reference
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final, Literal, cast

ECS_VERSION: Final = "8.17.0"

type EcsType = Literal["date", "float", "ip", "keyword", "long", "match_only_text", "object", "wildcard"]

_NAMES: Final[dict[EcsType, str]] = {
    "date": "@timestamp event.created event.end event.ingested event.start process.start process.end",
    "float": "event.risk_score event.risk_score_norm",
    "ip": "client.ip destination.ip host.ip server.ip source.ip client.nat.ip source.nat.ip",
    "long": """
        client.bytes client.packets client.port destination.bytes destination.packets destination.port
        event.duration event.sequence event.severity file.size
        http.request.body.bytes http.request.bytes http.response.body.bytes http.response.bytes
        http.response.status_code log.origin.file.line network.bytes network.packets
        process.args_count process.exit_code process.parent.pid process.pid process.thread.id process.uptime
        server.bytes server.packets server.port source.bytes source.packets source.port url.port
    """,
    "match_only_text": "message error.message",
    "object": "labels",
    "wildcard": """
        error.stack_trace http.request.body.content http.response.body.content process.command_line
        url.full url.original url.path
    """,
    "keyword": """
        tags ecs.version error.code error.id error.type
        agent.ephemeral_id agent.id agent.name agent.type agent.version
        client.address client.domain client.mac client.user.id client.user.name
        cloud.account.id cloud.availability_zone cloud.instance.id cloud.provider cloud.region cloud.service.name
        container.id container.image.name container.image.tag container.name container.runtime
        destination.address destination.domain
        event.action event.category event.code event.dataset event.hash event.id event.kind event.module
        event.original event.outcome event.provider event.reason event.reference event.timezone event.type event.url
        file.directory file.extension file.mime_type file.name file.path
        host.architecture host.domain host.hostname host.id host.name host.type
        http.request.id http.request.method http.request.mime_type http.request.referrer
        http.response.mime_type http.version
        log.file.path log.level log.logger log.origin.file.name log.origin.function
        network.application network.direction network.name network.protocol network.transport network.type
        orchestrator.cluster.name orchestrator.namespace orchestrator.resource.name orchestrator.type
        process.args process.entity_id process.executable process.name process.thread.name process.title
        process.working_directory
        server.address server.domain server.mac service.address service.environment service.ephemeral_id service.id
        service.name service.node.name service.state service.type service.version
        source.address source.domain source.mac source.user.id source.user.name
        span.id trace.id transaction.id
        url.domain url.extension url.fragment url.password url.query url.registered_domain url.scheme url.subdomain
        url.top_level_domain url.username
        user.domain user.email user.full_name user.hash user.id user.name user.roles
        user_agent.device.name user_agent.name user_agent.original user_agent.version
    """,
}

FIELDS: Final[Mapping[str, EcsType]] = {
    name: type_ for type_, names in _NAMES.items() for name in names.split()
}
"""The type of each name."""

OBJECTS: Final = frozenset(name.partition(".")[0] for name in FIELDS if "." in name)
"""The names that stand for objects, such as `http`."""


def flattened(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield a value of the schema by its dotted names: `http={"version": "1.1"}` is `http.version`."""
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[Any, object]", value).items():
            yield from flattened(f"{name}.{key}", inner)
    else:
        yield name, value


@lru_cache(maxsize=1024)
def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # the scope of a link-local address is not part of the type


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: object) -> bool:
    values = cast("Sequence[object]", value) if isinstance(value, list | tuple) else (value,)
    return all(isinstance(each, str) for each in values)


_FITTING: Final[Mapping[EcsType, Callable[[Any], bool]]] = {
    "date": lambda value: isinstance(value, datetime) or (isinstance(value, str) and _is_date(value)),
    "float": _is_number,
    "ip": lambda value: isinstance(value, str) and _is_ip(value),
    "keyword": lambda value: isinstance(value, str) or _are_texts(value),
    "long": lambda value: _is_number(value) and isinstance(value, int) and abs(value) < 2**63,
    "match_only_text": lambda value: isinstance(value, str),
    "object": lambda _: False,
    "wildcard": lambda value: isinstance(value, str),
}
_TESTS: Final = {name: _FITTING[type_] for name, type_ in FIELDS.items()}


def fits(name: str, value: object) -> bool:
    """Return whether the schema has this name, and its type takes this value."""
    test = _TESTS.get(name)
    return test is not None and test(value)
