"""`POST /v1:transact`: all of it or nothing, in order, with its events."""

import asyncio
import itertools
from typing import Any
from uuid import UUID, uuid4

import pytest

from hybridkit.dataservice._postgres._keys import lock_number
from hybridkit.dataservice._store._operations import Update
from hybridkit.dataservice._store._refusals import validated
from hybridkit.errors import InvalidRequestError
from hybridkit.events import Event, decode_envelope
from hybridkit.observability import metrics


class ItemSold(Event, type="item.sold", version=2, key="item_id"):
    item_id: UUID
    quantity: int


def emission(key: str | None = "k", **changes: Any) -> dict[str, Any]:
    return {
        "event_type": "item.sold",
        "event_id": str(uuid4()),
        "timestamp": "2026-01-15T10:30:00Z",
        "key": key,
        "request_id": "the-request",
        "data": {"a": 1},
        **changes,
    }


def create(name: str, **data: Any) -> dict[str, Any]:
    return {"op": "create", "resource": "items", "id": str(uuid4()), "data": {"name": name, **data}}


def update(record: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"op": "update", "resource": "items", "id": record["id"], **members}


async def count(service: Any, table: str) -> int:
    [row] = await service.sql(f"SELECT count(*) AS n FROM {table}")
    return int(row["n"])


async def test_results_stand_in_the_order_of_the_operations(service: Any) -> None:
    """A transaction of every kind of operation returns a result for each, null for those without a record."""
    pen, ink = await service.create("pen"), await service.create("ink")
    answer = await service.transact(
        {"op": "create", "resource": "owners", "id": "ann", "data": {"id": "ann", "title": "Ann"}},
        create("box", owner_id="ann"),
        update(pen, data={"rank": 5}),
        {"op": "upsert", "resource": "items", "id": str(uuid4()), "data": {"name": "cup"}},
        {"op": "upsert", "resource": "items", "id": ink["id"], "data": {"name": "ink", "rank": 2}},
        {"op": "assert", "resource": "items", "id": ink["id"]},
        {"op": "delete", "resource": "items", "id": ink["id"]},
    )
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [result and (result.get("name") or result["title"]) for result in results] == [
        "Ann", "box", "pen", "cup", "ink", None, None,
    ]  # fmt: skip
    assert [result and result["version"] for result in results] == [1, 1, 2, 1, 2, None, None]
    assert (await service.get(f"/v1/items/{pen['id']}")).json() == results[2]


@pytest.mark.parametrize(
    ("last", "status", "code"),
    [
        (
            {"op": "create", "resource": "items", "id": str(uuid4()), "data": {"name": "pen"}},
            409,
            "UNIQUE_VIOLATION",
        ),
        ({"op": "assert", "resource": "items", "id": str(uuid4())}, 404, "NOT_FOUND"),
        ({"op": "update", "resource": "items", "id": str(uuid4()), "data": {"rank": 1}}, 404, "NOT_FOUND"),
        ({"op": "delete", "resource": "items", "id": str(uuid4())}, 404, "NOT_FOUND"),
        ({"op": "create", "resource": "items", "id": str(uuid4()), "data": {}}, 422, "VALIDATION"),
    ],
)
async def test_one_failure_undoes_everything(
    service: Any, last: dict[str, Any], status: int, code: str
) -> None:
    """Neither rows, events nor the key are kept, so the same call can be made again."""
    await service.create("pen")
    keys = await count(service, "hk_keys")
    answer = await service.transact(create("ink"), last, emit=[emission()], key="k")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await count(service, "items") == 1
    assert await count(service, "hk_outbox") == 0
    assert await count(service, "hk_keys") == keys


async def test_an_error_says_which_operation_it_means(service: Any) -> None:
    """The detail begins with the operation's place, and pointers lead into it."""
    unknown = {"op": "delete", "resource": "items", "id": str(uuid4())}
    assert (await service.transact(create("a"), unknown)).json()["detail"].startswith("operations/1: ")
    invalid = await service.transact(
        create("a"), {"op": "create", "resource": "items", "id": str(uuid4()), "data": {"rank": "x"}}
    )
    assert {error["pointer"] for error in invalid.json()["errors"]} == {
        "/operations/1/data/name",
        "/operations/1/data/rank",
    }


SOME = {"resource": "items", "id": str(uuid4())}


@pytest.mark.parametrize(
    ("operation", "status", "pointer"),
    [
        ({"op": "delete", "resource": "nothing", "id": "x"}, 422, "/resource"),
        ({"op": "delete", "resource": "items", "id": "x"}, 422, "/id"),
        ({"op": "explode", **SOME}, 422, ""),
        ({"op": "update", **SOME, "increment": {"secret": 1}}, 422, "/increment/secret"),
        ({"op": "update", **SOME, "increment": {"name": 1}}, 422, "/increment/name"),
        ({"op": "update", **SOME, "increment": {"quantity": 0.5}}, 422, "/increment/quantity"),
        ({"op": "update", **SOME, "increment": {"rank": 1}, "data": {"rank": 1}}, 422, "/increment/rank"),
        ({"op": "update", **SOME, "require": {"eq": ["secret", 1]}}, 400, "/require/eq"),
        ({"op": "update", **SOME, "data": {"details": 1}}, 422, "/data/details"),
    ],
)
async def test_an_operation_that_cannot_be_is_pointed_at(
    service: Any, operation: dict[str, Any], status: int, pointer: str
) -> None:
    """An operation that is malformed has a pointer to its wrong member."""
    answer = await service.transact(operation)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (status, f"/operations/0{pointer}")


async def test_a_merge_that_breaks_the_record_is_refused(service: Any) -> None:
    """What comes out of a patch is checked as the record declares it."""
    operation = Update(resource=service.items, id=uuid4(), label="operations/0")
    with pytest.raises(InvalidRequestError) as refused:
        validated(operation, "details", [1])
    assert refused.value.errors[0].pointer == "/operations/0/data/details"


async def test_an_increment_adds_where_its_requirement_holds(service: Any) -> None:
    """Once the requirement fails, the answer is 412 with the current ETag."""
    pen = await service.create("pen", quantity=2, price="1.10")
    sell = update(pen, increment={"quantity": -1, "price": 0.05}, require={"gte": ["quantity", 1]})
    first = (await service.transact(sell)).json()["results"][0]
    assert (first["quantity"], first["price"], first["version"]) == (1, "1.15", 2)
    assert (await service.transact(sell)).json()["results"][0]["quantity"] == 0
    sold_out = await service.transact(sell)
    assert (sold_out.status_code, sold_out.json()["code"]) == (412, "REQUIREMENT_NOT_MET")
    assert sold_out.json()["errors"][0]["pointer"] == "/operations/0/require"
    assert "requirement" in sold_out.json()["detail"]
    assert sold_out.json()["current"].startswith('"3-')


async def test_an_increment_of_nothing_starts_at_zero(service: Any) -> None:
    """A NULL counts as 0."""
    pen = await service.create("pen", rank=None)
    assert (await service.transact(update(pen, increment={"rank": 3}))).json()["results"][0]["rank"] == 3


async def test_a_counter_loses_no_increment(service: Any) -> None:
    """Thirty increments at once make thirty."""
    pen = await service.create("pen", quantity=0)
    answers = await asyncio.gather(
        *(service.transact_insistently(update(pen, increment={"quantity": 1})) for _ in range(30))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert (await service.get(f"/v1/items/{pen['id']}")).json()["quantity"] == 30


async def test_never_more_is_sold_than_there_was(service: Any) -> None:
    """Of twenty racing sales seven succeed for seven pieces, each with its event."""
    pen = await service.create("pen", quantity=7)
    sell = update(pen, increment={"quantity": -1}, require={"gte": ["quantity", 1]})
    answers = await asyncio.gather(
        *(service.transact_insistently(sell, emit=[emission()]) for _ in range(20))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [412] * 13
    assert await count(service, "hk_outbox") == 7


async def test_an_operation_takes_a_state_as_its_condition(service: Any) -> None:
    """An ETag guards an update, a delete and an assertion alike."""
    pen = await service.create("pen")
    for operation in (
        update(pen, data={"rank": 1}, if_match='"9-9"', require={"eq": ["name", "pen"]}),
        {"op": "delete", "resource": "items", "id": pen["id"], "if_match": '"9-9"'},
        {"op": "assert", "resource": "items", "id": pen["id"], "if_match": '"9-9"'},
    ):
        answer = await service.transact(operation)
        assert (answer.status_code, answer.json()["current"]) == (412, pen["etag"])
    held = {"op": "assert", "resource": "items", "id": pen["id"], "if_match": pen["etag"]}
    assert (await service.transact(held)).status_code == 200


async def test_an_assertion_locks_what_it_has_seen(service: Any) -> None:
    """A write that it rules out waits until the commit."""
    pen = await service.create("pen")
    async with service.holding("SELECT 1 FROM items WHERE id = $1 FOR UPDATE", UUID(pen["id"])) as other:
        asserting = asyncio.create_task(
            service.transact({"op": "assert", "resource": "items", "id": pen["id"]})
        )
        await service.until(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        assert not asserting.done()
        await other.execute("ROLLBACK")
    assert (await asserting).status_code == 200


async def test_a_transaction_has_its_limits(service: Any) -> None:
    """One hundred operations are done, one more is refused, and so is a body that is too large."""
    many = [create(f"item {n}") for n in range(101)]
    assert (await service.transact(*many)).status_code == 422
    assert (await service.transact(*many[:100])).status_code == 200
    assert (await service.transact(create("x", details={"text": "x" * 1_100_000}))).status_code == 413


async def test_an_empty_transaction_is_done(service: Any) -> None:
    """It has no results."""
    assert (await service.transact()).json() == {"results": []}


# ── events ───────────────────────────────────────────────────────────────────────────────────────


async def test_an_emitted_event_has_the_wire_form_of_an_envelope(service: Any) -> None:
    """The stored bytes decode to the event, with caller, request and user."""
    event = ItemSold(item_id=uuid4(), quantity=2)
    sent = {
        "event_type": "item.sold",
        "version": 2,
        "event_id": str(event.event_id),
        "timestamp": "2026-01-15T10:30:00.120Z",
        "key": "k",
        "request_id": "the-request",
        "user_id": "ann",
        "data": event.model_dump(mode="json"),
    }
    await service.transact(create("a"), emit=[sent], x_service_name="api_service")
    [row] = await service.sql("SELECT * FROM hk_outbox")
    envelope = decode_envelope(row["body"])
    assert envelope.encode() == row["body"]
    assert (envelope.service, envelope.request_id, envelope.user_id) == ("api_service", "the-request", "ann")
    assert (envelope.data, envelope.event_id, envelope.version) == (event, event.event_id, 2)


async def test_a_command_keeps_its_queue(service: Any) -> None:
    """The relay publishes a command to the queue that it names."""
    await service.transact(emit=[emission(key=None, queue="email_tasks", event_type="command.send")])
    await service.until("SELECT 1 FROM hk_outbox WHERE published_at IS NOT NULL")
    assert [queue for _, queue, _ in service.publisher.published] == ["email_tasks"]


async def test_an_event_is_emitted_once_whatever_the_key(service: Any) -> None:
    """The id belongs to the event, so a call with another key emits nothing new."""
    event = emission()
    for key in ("one", "one", "two"):
        assert (await service.transact(emit=[event], key=key)).status_code == 200
    assert await count(service, "hk_outbox") == 1


async def test_a_rerun_that_makes_its_event_at_another_time_is_the_same_call(service: Any) -> None:
    """An event's time and request are not compared, its data are."""
    event, before = emission(), metrics.idempotency_outcomes.labels("data_service", "mismatch")._value.get()
    await service.transact(emit=[event], key="k")
    again = await service.transact(
        emit=[{**event, "timestamp": "2026-02-01T00:00:00Z", "request_id": "another"}], key="k"
    )
    assert again.headers["idempotency-replayed"] == "true"
    assert metrics.idempotency_outcomes.labels("data_service", "mismatch")._value.get() == before
    other = await service.transact(emit=[{**event, "data": {"a": 2}}], key="k")
    assert other.status_code == 422


async def test_an_event_that_is_none_is_refused(service: Any) -> None:
    """A malformed event is 422."""
    for broken in (7, {}, emission(event_id="x"), emission(event_type="")):
        assert (await service.transact(emit=[broken])).status_code == 422


async def test_without_a_broker_nothing_is_emitted(
    postgres_url: str, make_tables: Any, run_service: Any
) -> None:
    """Emitting is refused, as nobody would publish the event, and other writes work."""
    await make_tables(postgres_url)
    async with run_service(postgres_url, broker=False) as service:
        answer = await service.transact(create("a"), emit=[emission()])
        assert (answer.status_code, answer.json()["code"]) == (501, "NOT_SUPPORTED")
        assert (await service.transact(create("a"))).status_code == 200


async def test_the_outbox_has_the_order_of_commits_per_key(service: Any) -> None:
    """For two keys, the counters, whose row locks order the commits, grow with the rows' numbers."""
    records = {"a": await service.create("a"), "b": await service.create("b")}
    values: dict[str, dict[str, int]] = {"a": {}, "b": {}}

    async def sell(keys: tuple[str, ...]) -> None:
        events = {key: emission(key) for key in keys}
        operations = [update(records[key], increment={"quantity": 1}) for key in sorted(keys)]
        answer = await service.transact_insistently(*operations, emit=list(events.values()))
        for key, result in zip(sorted(keys), answer.json()["results"], strict=True):
            values[key][events[key]["event_id"]] = result["quantity"]

    orders = itertools.cycle([("a", "b"), ("b", "a"), ("a",), ("b",)])
    await asyncio.gather(*(sell(next(orders)) for _ in range(40)))
    await service.until("SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM hk_outbox WHERE published_at IS NULL)")
    for key in ("a", "b"):
        rows = await service.sql("SELECT event_id FROM hk_outbox WHERE key = $1 ORDER BY sequence", key)
        stored = [values[key][str(row["event_id"])] for row in rows]
        published = [
            values[key][str(event_id)]
            for event_id, _, _ in service.publisher.published
            if str(event_id) in values[key]
        ]
        assert stored == published == list(range(1, 31))


async def test_a_writer_waits_for_the_other_one_with_its_key(service: Any) -> None:
    """A writer with another key does not wait."""
    lock = lock_number("lane", "k")
    async with service.holding("SELECT pg_advisory_xact_lock($1)", lock) as other:
        assert (await service.transact(emit=[emission("other"), emission(None)])).status_code == 200
        waiting = asyncio.create_task(service.transact(emit=[emission("k")]))
        await service.until(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
        )
        await other.execute("ROLLBACK")
        assert (await waiting).status_code == 200


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_a_refusal_is_the_same_under_every_isolation(service: Any, isolation: str) -> None:
    """Above `read_committed` it takes a second look, and still is a refusal."""
    missing = {"op": "assert", "resource": "items", "id": "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"}
    answer = await service.transact(missing, isolation=isolation)
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


async def test_a_store_shows_what_it_stores(service: Any) -> None:
    """The representation lists the resources."""
    assert repr(service.store) == "PostgresStore(['items', 'owners'])"
