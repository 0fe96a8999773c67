"""Comparing a topology with the broker: plan, apply and verify.

```python
topology = topology_of([analytics, emails])
print(await plan_topology(topology, url))       # changes nothing
await apply_topology(topology, url)             # declares what is missing, deletes nothing
await verify_topology(topology, url)            # raises a TopologyError that names every difference
```
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from urllib.parse import unquote

from aiormq.exceptions import ChannelPreconditionFailed

from hybridkit.errors import DeclarationError, NotConnectedError, NotSupportedError, TopologyError
from hybridkit.messaging._amqp._channel import PREPARE_SECONDS
from hybridkit.messaging._amqp._connection import BrokerConnection, start_seconds
from hybridkit.messaging._topology._broker_version import Broker
from hybridkit.messaging._topology._declared import (
    EVENT_EXCHANGE,
    Binding,
    Queue,
    Topology,
    dead_letter_queue,
    declare,
    delayed_to,
)
from hybridkit.messaging._topology._inspection import Inspected, Inspection, TopologyDifference
from hybridkit.messaging._topology._management import VirtualHostState, fetch_virtual_host

type Kind = Literal["exchange", "queue", "binding"]
type State = Literal["present", "missing", "conflicting", "unknown", "extra", "altered", "orphaned"]

_LIMITS: Final = ("expires", "message-ttl", "max-length", "max-length-bytes", "delivery-limit")
_CONNECTION_NAME: Final = "hybridkit topology"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The state of one exchange, queue or binding.

    Attributes:
        kind: exchange, queue or binding.
        name: the name of the exchange or queue; of a binding `source -> target (routing key)`.
        state: `present`: as declared; `missing`; `conflicting`: with other properties; `unknown`: a binding, where the
            management API was not asked; `extra`: not declared; `orphaned`: a queue that is not declared and has no
            consumer; `altered`: a queue as declared, for which a policy sets a lower limit.
        differences: the properties that differ, of a conflict.
        detail: anything else that is known, in words.
    """

    kind: Kind
    name: str
    state: State
    differences: tuple[TopologyDifference, ...] = ()
    detail: str = ""

    def __str__(self) -> str:
        said = self.explanation
        return f"{self.kind} {self.name} is {self.state}" + (f": {said}" if said else "")

    @property
    def explanation(self) -> str:
        """The differences and the detail in words; empty where there are none."""
        return "; ".join([*map(str, self.differences), *([self.detail] if self.detail else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A topology compared with the broker.

    Attributes:
        broker: the broker's product and version.
        findings: everything that was compared, also what is as declared.
    """

    broker: Broker
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        found = [str(finding) for finding in self.findings if finding.state not in {"present", "unknown"}]
        return "\n".join([str(self.broker), *found, *self.notes])

    @property
    def is_clean(self) -> bool:
        """Whether nothing is missing and nothing is in conflict, as far as could be compared."""
        return not self.of("missing", "conflicting")

    @property
    def notes(self) -> tuple[str, ...]:
        """The limits of the broker's version, and of the plan itself."""
        unknown = len(self.of("unknown"))
        if not unknown:
            return self.broker.notes
        said = f"bindings not compared: {unknown}. AMQP can't list them; the management API can"
        return (*self.broker.notes, said)

    def of(self, *states: State) -> tuple[Finding, ...]:
        """Return the findings in one of these states."""
        return tuple(finding for finding in self.findings if finding.state in states)


async def plan_topology(
    topology: Topology,
    broker: BrokerConnection | str,
    *,
    management_url: str | None = None,
    renamed_from: Collection[str] = (),
) -> Plan:
    """Compare a topology with the broker, and change nothing.

    Exchanges and queues are compared by declaring again those that exist, which the user must be allowed to. One that
    is deleted between two requests can come back by that; nothing else is ever created.

    Args:
        topology: what should exist.
        broker: a connection, or the URL of one to open for this.
        management_url: `http://user:password@host:15672`; with it bindings are compared, and orphaned queues and
            policies are found.
        renamed_from: former names of consumers, whose queues may have been left behind.

    Raises:
        NotConnectedError: the broker did not reply by the context's deadline, or within 30 s without one.
        AccessDeniedError: the user may not declare something, or not use the management API.
        UnavailableError: the management API did not respond.
        DeclarationError: a name in `renamed_from` is declared.
    """
    if used := [name for name in renamed_from if name in {queue.name for queue in topology.queues}]:
        raise DeclarationError(f"{', '.join(used)} can't be a former name: it is declared now")
    async with _inspecting(broker) as (inspection, vhost):
        managed = await fetch_virtual_host(management_url, vhost=vhost) if management_url else None
        plan = await _compare(topology, inspection, managed)
        leftovers = await _leftovers(topology, inspection, managed, renamed_from)
        return replace(plan, findings=(*plan.findings, *leftovers))


async def apply_topology(topology: Topology, broker: BrokerConnection | str) -> Plan:
    """Declare what is missing; delete nothing, and declare nothing while there is a conflict.

    Args:
        topology: what should exist.
        broker: a connection, or the URL of one to open for this.

    Returns:
        The plan as it was before.

    Raises:
        TopologyError: there is a conflict; the error names all of them.
        NotSupportedError: the broker is too old.
        NotConnectedError: the broker did not reply by the context's deadline, or within 30 s without one.
        AccessDeniedError: the user may not declare something.
    """
    async with _inspecting(broker) as (inspection, _):
        plan = await _compare(topology, inspection, None)
        if not plan.broker.is_supported:
            raise NotSupportedError(plan.broker.notes[0])
        _demand_none(plan.of("conflicting"), "nothing was declared, as the broker has something otherwise:")
        try:
            await inspection.ask(lambda channel: declare(topology, channel), seconds=PREPARE_SECONDS)
        except ChannelPreconditionFailed as error:
            raise TopologyError(f"somebody has declared it otherwise meanwhile: {error}") from error
        return plan


async def verify_topology(
    topology: Topology, broker: BrokerConnection | str, *, management_url: str | None = None
) -> Plan:
    """Require that everything exists as declared: for CI, before a deployment, or as a readiness check.

    Args:
        topology: what should exist.
        broker: a connection, or the URL of one to open for this.
        management_url: `http://user:password@host:15672`; without it missing bindings are not noticed.

    Returns:
        The plan, in which nothing is missing or in conflict.

    Raises:
        TopologyError: something is missing or in conflict; the error names all of it.
        NotConnectedError: the broker did not reply by the context's deadline, or within 30 s without one.
        AccessDeniedError: the user may not declare something, or not use the management API.
        UnavailableError: the management API did not respond.
    """
    plan = await plan_topology(topology, broker, management_url=management_url)
    _demand_none(plan.of("missing", "conflicting"), "the broker does not have what is declared:")
    return plan


def _demand_none(findings: Collection[Finding], message: str) -> None:
    if findings:
        raise TopologyError(message, differences=[str(finding) for finding in findings])


@asynccontextmanager
async def _inspecting(broker: BrokerConnection | str) -> AsyncGenerator[tuple[Inspection, str]]:
    """Open an inspection of the broker, and name the virtual host."""
    if isinstance(broker, str):
        async with BrokerConnection(broker, name=_CONNECTION_NAME) as own, _inspecting(own) as opened:
            yield opened
        return
    seconds = start_seconds()
    try:
        async with asyncio.timeout(seconds):
            connection = await broker.opened()
            await connection.writable()
    except TimeoutError as error:
        raise NotConnectedError(
            f"no connection to the broker at {broker.address} in {seconds:.1f} s"
        ) from error
    async with Inspection(connection) as inspection:
        yield inspection, unquote(broker.address.partition("/")[2]) or "/"


async def _compare(topology: Topology, inspection: Inspection, managed: VirtualHostState | None) -> Plan:
    broker = Broker.from_properties(await inspection.server_properties())
    exchanges = [
        _finding("exchange", each.name, await inspection.compare_exchange(each))
        for each in topology.exchanges
    ]
    queues = [_finding("queue", each.name, await inspection.compare_queue(each)) for each in topology.queues]
    others = (*_bindings(topology, managed), *_altered(topology, managed))
    return Plan(broker=broker, findings=(*exchanges, *queues, *others))


def _finding(kind: Kind, name: str, found: Inspected) -> Finding:
    if not found.exists:
        return Finding(kind=kind, name=name, state="missing")
    state: State = "conflicting" if found.differences or found.refusal else "present"
    return Finding(kind=kind, name=name, state=state, differences=found.differences, detail=found.refusal)


def _bindings(topology: Topology, managed: VirtualHostState | None) -> list[Finding]:
    """Compare the bindings, and list others that lead to exchanges and queues of the topology."""
    if managed is None:
        return [Finding(kind="binding", name=str(each), state="unknown") for each in topology.bindings]
    found = [
        Finding(kind="binding", name=str(each), state="present" if each in managed.bindings else "missing")
        for each in topology.bindings
    ]
    queues = {queue.name for queue in topology.queues}
    exchanges = {exchange.name for exchange in topology.exchanges}
    extra = [
        each
        for each in managed.bindings.difference(topology.bindings)
        if each.target in (exchanges if each.to_exchange else queues)
    ]
    return found + [
        Finding(kind="binding", name=str(each), state="extra", detail=_extra_detail(each))
        for each in sorted(extra, key=str)
    ]


def _extra_detail(binding: Binding) -> str:
    if binding.source == EVENT_EXCHANGE and not binding.to_exchange:
        return "no handler is declared for these events, so they become dead letters"
    return ""


def _altered(topology: Topology, managed: VirtualHostState | None) -> list[Finding]:
    """List queues that are as declared, but whose messages a policy expires, drops or refuses earlier."""
    found: list[Finding] = []
    for queue in topology.queues:
        policies = managed and managed.policies.get(queue.name)
        if policies and (said := _tightened(queue, policies.definition)):
            detail = f"{', '.join(said)} (set by {' and '.join(policies.names)})"
            found.append(Finding(kind="queue", name=queue.name, state="altered", detail=detail))
    return found


def _tightened(queue: Queue, definition: Mapping[str, Any]) -> list[str]:
    """List the limits of a policy that are lower than the queue's own: of two limits the lower one counts."""
    limits = [(name, definition.get(name), queue.arguments.get(f"x-{name}")) for name in _LIMITS]
    return [
        f"{name} {value}"
        for name, value, own in limits
        if isinstance(value, int) and (not isinstance(own, int) or value < own)
    ]


async def _leftovers(
    topology: Topology,
    inspection: Inspection,
    managed: VirtualHostState | None,
    renamed_from: Iterable[str],
) -> list[Finding]:
    """List queues of consumers that are not declared: with a former name, or bound for delays and not consumed."""
    bindings = managed.bindings if managed else frozenset[Binding]()
    declared = {queue.name for queue in topology.queues}
    named = dict.fromkeys(renamed_from)
    bound = {each.target for each in bindings if each == delayed_to(each.target)} - declared - set(named)
    found: list[Finding] = []
    for name in [*named, *sorted(bound)]:
        queue = await inspection.find_queue(name)
        if name in named or not queue.consumers:
            letters = await inspection.find_queue(dead_letter_queue(name))
            found += _leftover(name, queue, bindings) + _leftover(dead_letter_queue(name), letters, bindings)
    return found


def _leftover(name: str, found: Inspected, bindings: Collection[Binding]) -> list[Finding]:
    if not found.exists:
        return []
    events = sum(each.source == EVENT_EXCHANGE and each.target == name for each in bindings)
    said = found.refusal or f"messages: {found.messages}, consumers: {found.consumers}"
    if events:
        said += f", event types that still go there: {events}"
    return [Finding(kind="queue", name=name, state="extra" if found.consumers else "orphaned", detail=said)]
