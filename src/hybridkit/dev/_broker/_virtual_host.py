"""A virtual host: its exchanges, queues and bindings, and the routing of messages through them."""

import base64
import secrets
from collections.abc import Iterable, Sequence

from hybridkit.dev._broker._arguments import (
    Arguments,
    QueueSettings,
    alternate_exchange,
    compare,
    compare_arguments,
    queue_settings,
)
from hybridkit.dev._broker._dead_letters import DeadLetters
from hybridkit.dev._broker._exchanges import KINDS, Binding, Exchange, standard_exchanges
from hybridkit.dev._broker._messages import Message, Reason
from hybridkit.dev._broker._properties import Properties
from hybridkit.dev._broker._queues import Queue
from hybridkit.dev._broker._refusals import RefusalError


class VirtualHost:
    """One virtual host. Its methods refuse what RabbitMQ refuses.

    Args:
        name: the name, as in the path of the URL.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.exchanges: dict[str, Exchange] = {each.name: each for each in standard_exchanges()}
        self.queues: dict[str, Queue] = {}

    def __repr__(self) -> str:
        return f"VirtualHost({self.name!r}, exchanges={len(self.exchanges)}, queues={len(self.queues)})"

    def close(self) -> None:
        """Delete every queue."""
        for queue in list(self.queues.values()):
            self.delete_queue(queue)

    # ── routing ──────────────────────────────────────────────────────────────────────────────────

    def route(self, exchange: str, keys: Sequence[str], properties: Properties) -> list[Queue]:
        """Return the queues that a message goes to, each once; none when the exchange does not exist."""
        if not exchange:
            return [queue for key in dict.fromkeys(keys) if (queue := self.queues.get(key))]
        found: dict[Queue, None] = {}
        seen: set[str] = set()
        names = [exchange]
        for name in names:
            if name in seen or (node := self.exchanges.get(name)) is None:
                continue
            seen.add(name)
            targets = self._targets(node, keys, properties)
            found |= dict.fromkeys(target for target in targets if isinstance(target, Queue))
            names += [target.name for target in targets if isinstance(target, Exchange)]
            if not targets and node.alternate:
                names.append(node.alternate)
        return list(found)

    def _targets(
        self, exchange: Exchange, keys: Sequence[str], properties: Properties
    ) -> Sequence[Queue | Exchange]:
        if not exchange.name:
            return [queue for key in keys if (queue := self.queues.get(key))]
        if len(keys) == 1:
            return exchange.targets(keys[0], properties)
        return [target for key in keys for target in exchange.targets(key, properties)]

    def deliver_dead_letter(self, dead_letter: Message, reason: Reason) -> bool:
        """See `Router`."""
        queues = self.route(dead_letter.exchange, dead_letter.keys, dead_letter.properties)
        if reason != "rejected":
            straight = [queue for queue in queues if not dead_letter.is_in_cycle(queue.name)]
            if queues and not straight:
                # RabbitMQ drops messages that would cycle forever.
                return True
            queues = straight
        refused = [queue for queue in queues if not queue.put(dead_letter)]
        return bool(queues) and not refused

    # ── exchanges ────────────────────────────────────────────────────────────────────────────────

    def exchange(self, name: str) -> Exchange:
        """Return the exchange of that name.

        Raises:
            RefusalError: it does not exist (404).
        """
        if found := self.exchanges.get(name):
            return found
        raise RefusalError(404, f"no exchange '{name}' in vhost '{self.name}'")

    def declare_exchange(
        self,
        name: str,
        kind: str,
        *,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: Arguments,
    ) -> None:
        """Create an exchange, or check that the existing one has the same properties.

        Raises:
            RefusalError: the name is reserved (403), or type or properties differ (406).
        """
        _refuse_default(name)
        subject = f"exchange '{name}' in vhost '{self.name}'"
        if kind not in KINDS:
            raise RefusalError(406, f"unknown exchange type '{kind}'")
        alternate = alternate_exchange(arguments, subject=subject)
        if found := self.exchanges.get(name):
            received = {"type": kind, "durable": durable, "auto_delete": auto_delete, "internal": internal}
            current = {
                "type": found.kind,
                "durable": found.durable,
                "auto_delete": found.auto_delete,
                "internal": found.internal,
            }
            compare(subject, current, received)
            compare_arguments(subject, found.arguments, arguments, ("alternate-exchange",))
            return
        _refuse_reserved("exchange", name)
        self.exchanges[name] = Exchange(
            name,
            kind,
            durable=durable,
            auto_delete=auto_delete,
            internal=internal,
            alternate=alternate,
            arguments=arguments,
        )

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """Delete an exchange with its bindings; do nothing when it does not exist.

        Raises:
            RefusalError: it is one of the broker's own (403), or has bindings in spite of `if_unused` (406).
        """
        _refuse_default(name)
        subject = f"exchange '{name}' in vhost '{self.name}'"
        if name.startswith("amq."):
            raise RefusalError(403, f"deletion of system {subject} not allowed")
        if (found := self.exchanges.get(name)) is None:
            return
        if if_unused and found.bindings:
            raise RefusalError(406, f"{subject} in use")
        self._forget_exchange(found)

    def _forget_exchange(self, exchange: Exchange) -> None:
        if self.exchanges.pop(exchange.name, None):
            self._unbind_target(exchange)

    # ── bindings ─────────────────────────────────────────────────────────────────────────────────

    def bind(self, source: str, target: Queue | Exchange, key: str, arguments: Arguments) -> None:
        """Add a binding.

        Raises:
            RefusalError: the source is the default exchange (403), or does not exist (404).
        """
        _refuse_default(source)
        if isinstance(target, Exchange):
            _refuse_default(target.name)
        self.exchange(source).bind(Binding(target, key, arguments))

    def unbind(self, source: str, target: Queue | Exchange | None, key: str, arguments: Arguments) -> None:
        """Remove a binding; do nothing when it does not exist.

        Raises:
            RefusalError: the source is the default exchange (403).
        """
        _refuse_default(source)
        if target is not None and (exchange := self.exchanges.get(source)):
            wanted = Binding(target, key, arguments)
            self._unbind(exchange, [binding for binding in exchange.bindings if binding == wanted])

    def _unbind_target(self, target: Queue | Exchange) -> None:
        for exchange in list(self.exchanges.values()):
            self._unbind(exchange, [binding for binding in exchange.bindings if binding.target is target])

    def _unbind(self, exchange: Exchange, bindings: Sequence[Binding]) -> None:
        removed = exchange.unbind(lambda binding: binding in bindings)
        if removed and exchange.auto_delete and not exchange.bindings:
            self._forget_exchange(exchange)

    # ── queues ───────────────────────────────────────────────────────────────────────────────────

    def queue(self, name: str, *, user: object) -> Queue:
        """Return the queue of that name.

        Args:
            name: the name; not empty.
            user: the connection that wants to use the queue.

        Raises:
            RefusalError: it does not exist (404), or belongs to another connection (405).
        """
        if (found := self.queues.get(name)) is None:
            raise RefusalError(404, f"no queue '{name}' in vhost '{self.name}'")
        if found.owner is not None and found.owner is not user:
            raise self._locked(name)
        return found

    def declare_queue(
        self,
        name: str,
        *,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
        user: object,
        arguments: Arguments,
    ) -> Queue:
        """Create a queue, or check that the existing one has the same properties. An empty name gets a generated one.

        Raises:
            RefusalError: the name is reserved (403), the queue belongs to another connection (405), or arguments or
                properties are invalid or differ (406).
        """
        subject = f"queue '{name}' in vhost '{self.name}'"
        settings = queue_settings(arguments, subject=subject)
        if name in self.queues:
            found = self.queue(name, user=user)
            if found.owner is not owner:
                raise self._locked(name)
            self._compare_queue(found, settings, arguments, durable=durable, auto_delete=auto_delete)
            found.touch()
            return found
        _refuse_reserved("queue", name)
        if settings.kind == "quorum":
            _refuse_for_quorum(subject, durable=durable, auto_delete=auto_delete, owner=owner)
        name = name or f"amq.gen-{base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip('=')}"
        queue = self.queues[name] = Queue(
            name,
            settings,
            dead_letters=DeadLetters(name, settings, self),
            delete=self.delete_queue,
            arguments=arguments,
            durable=durable,
            auto_delete=auto_delete,
            owner=owner,
        )
        return queue

    def delete_queue(self, queue: Queue) -> None:
        """Delete a queue with its messages and bindings, and cancel its consumers."""
        if self.queues.pop(queue.name, None):
            self._unbind_target(queue)
            queue.close()

    def queues_of(self, owner: object) -> Iterable[Queue]:
        """Return the exclusive queues of a connection."""
        return [queue for queue in self.queues.values() if queue.owner is owner]

    def _compare_queue(
        self, found: Queue, settings: QueueSettings, arguments: Arguments, *, durable: bool, auto_delete: bool
    ) -> None:
        subject = f"queue '{found.name}' in vhost '{self.name}'"
        current = {
            "durable": found.durable,
            "auto_delete": found.auto_delete,
            "x-queue-type": found.settings.kind,
        }
        received = {"durable": durable, "auto_delete": auto_delete, "x-queue-type": settings.kind}
        compare(subject, current, received)
        compare_arguments(subject, found.arguments, arguments)

    def _locked(self, name: str) -> RefusalError:
        return RefusalError(
            405,
            f"cannot obtain exclusive access to locked queue '{name}' in vhost '{self.name}'. It could be originally "
            "declared on another connection or the exclusive property value does not match that of the original "
            "declaration.",
        )


def _refuse_default(exchange: str) -> None:
    if not exchange:
        raise RefusalError(403, "operation not permitted on the default exchange")


def _refuse_reserved(what: str, name: str) -> None:
    if name.startswith("amq."):
        raise RefusalError(403, f"{what} name '{name}' contains reserved prefix 'amq.*'")


def _refuse_for_quorum(subject: str, *, durable: bool, auto_delete: bool, owner: object | None) -> None:
    refused = {"non-durable": not durable, "exclusive-owner": owner is not None, "auto-delete": auto_delete}
    for name, is_given in refused.items():
        if is_given:
            raise RefusalError(406, f"invalid property '{name}' for {subject}")
