"""The same work by aio-pika alone: a pydantic model to JSON, persistent, mandatory, confirmed, returns raised."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from aio_pika import DeliveryMode, Message

from benchmarks._payload import (
    EVENT_TYPE,
    EXCHANGE,
    SERVICE,
    PlainEvent,
    make_plain_event,
    plain_headers,
    wrap_plain,
)
from benchmarks._side import Sample, channel_of, in_flight, one_by_one, run, timed
from hybridkit.ids import new_id

type Publish = Callable[[PlainEvent], Awaitable[None]]


@asynccontextmanager
async def publisher(url: str) -> AsyncGenerator[Publish]:
    """Return a function that publishes one event and waits for its confirm."""
    request_id = str(new_id())
    async with channel_of(url, publisher_confirms=True, on_return_raises=True) as channel:
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)

        async def publish(event: PlainEvent) -> None:
            message = Message(
                wrap_plain(event, request_id).model_dump_json().encode(),
                headers=dict(plain_headers(event, request_id)),
                content_type="application/json",
                delivery_mode=DeliveryMode.PERSISTENT,
                message_id=str(new_id()),
                timestamp=event[1],
                type=EVENT_TYPE,
                app_id=SERVICE,
            )
            await exchange.publish(message, EVENT_TYPE, mandatory=True)

        yield publish


async def publish_in_flight(url: str, count: int) -> Sample:
    """500 tasks, each publishes one after the other."""
    async with publisher(url) as publish:
        events = [make_plain_event() for _ in range(count)]
        return await timed(lambda part: in_flight(publish, part), events)


async def publish_one_by_one(url: str, count: int) -> Sample:
    """One task."""
    async with publisher(url) as publish:
        events = [make_plain_event() for _ in range(count)]
        return await timed(lambda part: one_by_one(publish, part), events)


if __name__ == "__main__":
    run({"publish_in_flight": publish_in_flight, "publish_one_by_one": publish_one_by_one})
