"""The methods of a channel that declare, bind, purge and delete."""

from typing import Any, Final

from pamqp import base, commands

from hybridkit.dev._broker import _frames as frames
from hybridkit.dev._broker._channel import Channel, ChannelMethods
from hybridkit.dev._broker._queues import Queue
from hybridkit.dev._broker._refusals import RefusalError


def _declare_exchange(channel: Channel, method: commands.Exchange.Declare) -> None:
    host = channel.connection.virtual_host
    if method.passive:
        host.exchange(method.exchange or "")
    else:
        host.declare_exchange(
            method.exchange or "",
            method.exchange_type,
            durable=method.durable,
            auto_delete=method.auto_delete,
            internal=method.internal,
            arguments=method.arguments or {},
        )
    _reply(channel, method, commands.Exchange.DeclareOk())


def _delete_exchange(channel: Channel, method: commands.Exchange.Delete) -> None:
    channel.connection.virtual_host.delete_exchange(method.exchange or "", if_unused=method.if_unused)
    _reply(channel, method, commands.Exchange.DeleteOk())


def _bind_exchange(channel: Channel, method: commands.Exchange.Bind) -> None:
    host = channel.connection.virtual_host
    target = host.exchange(method.destination or "")
    host.bind(method.source or "", target, method.routing_key, method.arguments or {})
    _reply(channel, method, commands.Exchange.BindOk())


def _unbind_exchange(channel: Channel, method: commands.Exchange.Unbind) -> None:
    host = channel.connection.virtual_host
    target = host.exchanges.get(method.destination or "")
    host.unbind(method.source or "", target, method.routing_key, method.arguments or {})
    _reply(channel, method, commands.Exchange.UnbindOk())


def _declare_queue(channel: Channel, method: commands.Queue.Declare) -> None:
    connection = channel.connection
    if method.passive:
        queue = connection.virtual_host.queue(method.queue, user=connection)
        queue.touch()
    else:
        queue = connection.virtual_host.declare_queue(
            method.queue,
            durable=method.durable,
            auto_delete=method.auto_delete,
            owner=connection if method.exclusive else None,
            user=connection,
            arguments=method.arguments or {},
        )
    channel.last_queue = queue.name
    if not method.nowait:
        connection.send(frames.encode_declare_ok(channel.number, queue.name, queue.ready, queue.consumers))


def _delete_queue(channel: Channel, method: commands.Queue.Delete) -> None:
    host = channel.connection.virtual_host
    name = method.queue or channel.last_queue
    count = 0
    if name in host.queues:
        queue = host.queue(name, user=channel.connection)
        subject = f"queue '{queue.name}' in vhost '{host.name}'"
        _check_delete(queue, subject, if_unused=method.if_unused, if_empty=method.if_empty)
        count = queue.ready
        host.delete_queue(queue)
    _reply(channel, method, commands.Queue.DeleteOk(message_count=count))


def _check_delete(queue: Queue, subject: str, *, if_unused: bool, if_empty: bool) -> None:
    conditions = {"if-unused": if_unused, "if-empty": if_empty}
    if queue.settings.kind == "quorum" and any(conditions.values()):
        name = next(name for name, is_given in conditions.items() if is_given)
        why = f"queue.delete operations with {name} flag set are not supported by quorum queues"
        raise RefusalError(540, f"cannot delete {subject}. {why}")
    if if_unused and queue.consumers:
        raise RefusalError(406, f"{subject} in use")
    if if_empty and queue.ready:
        raise RefusalError(406, f"{subject} not empty")


def _purge_queue(channel: Channel, method: commands.Queue.Purge) -> None:
    _reply(channel, method, commands.Queue.PurgeOk(message_count=channel.queue(method.queue).purge()))


def _bind_queue(channel: Channel, method: commands.Queue.Bind) -> None:
    queue = channel.queue(method.queue)
    key = method.routing_key or ("" if method.queue else queue.name)
    channel.connection.virtual_host.bind(method.exchange or "", queue, key, method.arguments or {})
    _reply(channel, method, commands.Queue.BindOk())


def _unbind_queue(channel: Channel, method: commands.Queue.Unbind) -> None:
    host = channel.connection.virtual_host
    target = host.queues.get(method.queue or channel.last_queue)
    host.unbind(method.exchange or "", target, method.routing_key, method.arguments or {})
    channel.send(commands.Queue.UnbindOk())


def _reply(channel: Channel, method: Any, answer: base.Frame) -> None:
    if not method.nowait:
        channel.send(answer)


DECLARATIONS: Final[ChannelMethods] = {
    commands.Exchange.Declare: _declare_exchange,
    commands.Exchange.Delete: _delete_exchange,
    commands.Exchange.Bind: _bind_exchange,
    commands.Exchange.Unbind: _unbind_exchange,
    commands.Queue.Declare: _declare_queue,
    commands.Queue.Delete: _delete_queue,
    commands.Queue.Purge: _purge_queue,
    commands.Queue.Bind: _bind_queue,
    commands.Queue.Unbind: _unbind_queue,
}
