"""The methods of a channel that consume and settle, and the one that turns on confirms."""

import secrets
from typing import Final

from pamqp import commands

from hybridkit.dev._broker._channel import Channel, ChannelMethods
from hybridkit.dev._broker._deliveries import Consumer
from hybridkit.dev._broker._refusals import RefusalError


def _select(channel: Channel, method: commands.Confirm.Select) -> None:
    channel.start_confirming()
    if not method.nowait:
        channel.send(commands.Confirm.SelectOk())


def _qos(channel: Channel, method: commands.Basic.Qos) -> None:
    if method.prefetch_size:
        raise RefusalError(540, f"prefetch_size!=0 ({method.prefetch_size})")
    # RabbitMQ 4.3 dropped limits per channel; `global` is ignored.
    channel.deliveries.prefetch = method.prefetch_count
    channel.send(commands.Basic.QosOk())


def _consume(channel: Channel, method: commands.Basic.Consume) -> None:
    queue = channel.queue(method.queue)
    tag = method.consumer_tag or f"amq.ctag-{secrets.token_urlsafe(16)}"
    if tag in channel.deliveries.consumers:
        raise RefusalError(530, f"attempt to reuse consumer tag '{tag}'")
    # RabbitMQ ignores the flag for quorum queues.
    exclusive = method.exclusive and queue.settings.kind == "classic"
    if queue.is_exclusively_used or (exclusive and queue.consumers):
        subject = f"queue '{queue.name}' in vhost '{channel.connection.virtual_host.name}'"
        raise RefusalError(403, f"{subject} in exclusive use")
    consumer = Consumer(channel, queue, tag, no_ack=method.no_ack, prefetch=channel.deliveries.prefetch)
    channel.deliveries.consume(consumer)
    if not method.nowait:
        channel.send(commands.Basic.ConsumeOk(consumer_tag=tag))
    queue.add(consumer, exclusive=exclusive)


def _cancel(channel: Channel, method: commands.Basic.Cancel) -> None:
    channel.deliveries.cancel(method.consumer_tag or "")
    if not method.nowait:
        channel.send(commands.Basic.CancelOk(consumer_tag=method.consumer_tag))


def _cancelled(_: Channel, _method: commands.Basic.CancelOk) -> None:
    """Ignore the client's answer to our `basic.cancel`, as RabbitMQ does."""


def _get(channel: Channel, method: commands.Basic.Get) -> None:
    channel.deliveries.get(channel.queue(method.queue), no_ack=method.no_ack)


def _nack(channel: Channel, method: commands.Basic.Nack) -> None:
    channel.deliveries.nack(
        method.delivery_tag, multiple=method.multiple, requeue=method.requeue, failed=False
    )


def _reject(channel: Channel, method: commands.Basic.Reject) -> None:
    # RabbitMQ 4.3 counts a requeue by reject as a failure, and one by nack not.
    channel.deliveries.nack(method.delivery_tag or 0, multiple=False, requeue=method.requeue, failed=True)


def _recover(channel: Channel, method: commands.Basic.Recover | commands.Basic.RecoverAsync) -> None:
    if not method.requeue:
        raise RefusalError(540, "requeue=false")
    channel.deliveries.give_all_back(failed=False)
    if isinstance(method, commands.Basic.Recover):
        channel.send(commands.Basic.RecoverOk())


CONSUMING: Final[ChannelMethods] = {
    commands.Confirm.Select: _select,
    commands.Basic.Qos: _qos,
    commands.Basic.Consume: _consume,
    commands.Basic.Cancel: _cancel,
    commands.Basic.CancelOk: _cancelled,
    commands.Basic.Get: _get,
    commands.Basic.Nack: _nack,
    commands.Basic.Reject: _reject,
    commands.Basic.Recover: _recover,
    commands.Basic.RecoverAsync: _recover,
}
