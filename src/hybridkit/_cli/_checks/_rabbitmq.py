"""RabbitMQ: reachable, of a supported version, and with queues as they are declared."""

import time
from collections.abc import Sequence
from typing import Final

from hybridkit._cli._checks._finding import Finding, Level, answered
from hybridkit.context import RequestContext, bind
from hybridkit.messaging import RobustConsumer, plan_topology, topology_of

CONNECT_SECONDS: Final = 5.0

_LEVELS: Final[dict[str, Level]] = {
    "missing": "warning",
    "conflicting": "problem",
    "altered": "warning",
    "extra": "warning",
    "orphaned": "warning",
}
_ADVICE: Final = {
    "conflicting": "hybridkit topology plan shows the difference: delete it there, or give the consumer another name",
    "altered": "remove or change the policy",
    "extra": "remove the binding, which brings messages that nobody handles",
    "orphaned": "empty it, and delete it",
}
NAMED: Final = 3
SHOWN: Final = 20


async def check_rabbitmq(
    url: str, consumers: Sequence[RobustConsumer], *, management_url: str | None
) -> Sequence[Finding]:
    """Compare the broker with what the consumers of a module declare.

    Args:
        url: the URL of the broker.
        consumers: the consumers of the module; none for a process that only publishes.
        management_url: the management API, with which policies and bindings are compared too.

    Raises:
        NotConnectedError: the broker does not answer.
        AccessDeniedError: the user may not declare something.
        UnavailableError: the management API does not answer.
    """
    since = time.monotonic()
    with bind(RequestContext().within(CONNECT_SECONDS)):
        plan = await plan_topology(topology_of(consumers), url, management_url=management_url)
    found = [answered("rabbitmq", str(plan.broker), since=since)]
    if not plan.broker.is_supported:
        detail = f"{plan.broker} is older than 3.10, whose quorum queues dead-letter at least once"
        advice = "upgrade it to 3.13 or newer"
        found.append(Finding(level="problem", check="rabbitmq.version", detail=detail, advice=advice))
    differing = [each for each in plan.findings if each.state in _LEVELS]
    missing = [each for each in differing if each.state == "missing"]
    if missing:
        names = ", ".join(each.name for each in missing[:NAMED])
        detail = f"{len(missing)} exchanges, queues and bindings are missing, such as {names}"
        found.append(
            Finding(
                level="warning",
                check="rabbitmq.topology",
                detail=detail,
                advice="the next start declares them",
            )
        )
    for each in [each for each in differing if each.state != "missing"][:SHOWN]:
        detail = f"{each.kind} {each.name} is {each.state}: {each.explanation}"
        level, advice = _LEVELS[each.state], _ADVICE[each.state]
        found.append(Finding(level=level, check="rabbitmq.topology", detail=detail, advice=advice))
    if not differing:
        detail = f"{len(plan.findings)} exchanges, queues and bindings are as declared"
        found.append(Finding(level="ok", check="rabbitmq.topology", detail=detail))
    return found
