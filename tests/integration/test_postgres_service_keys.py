"""Idempotency in the database: a write happens once per caller and key, and its answer is given again."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from hybridkit.context import RequestContext, bind
from hybridkit.dataservice._postgres._keys import lock_number
from hybridkit.dataservice._store._operations import Create, Outcome, Write
from hybridkit.errors import ConflictError, InvalidRequestError
from hybridkit.observability import metrics

DERIVED = "hkd_" + "0" * 64


def outcomes(name: str) -> float:
    return float(metrics.idempotency_outcomes.labels("data_service", name)._value.get())


async def count_items(service: Any) -> int:
    [row] = await service.sql("SELECT count(*) AS items FROM items")
    return int(row["items"])


async def test_a_write_without_a_key_is_refused(service: Any) -> None:
    """Every writing route asks for an `Idempotency-Key`."""
    path = "/v1/items/1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"
    for method, target, body in (
        ("POST", "/v1/items", {"name": "pen"}),
        ("PUT", path, {"name": "pen"}),
        ("PATCH", path, {"rank": 1}),
        ("DELETE", path, None),
        ("POST", "/v1:transact", {"operations": []}),
    ):
        answer = await service.http.request(method, target, json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")


@pytest.mark.parametrize("key", ["", "x" * 256, "\x7f"])
async def test_a_key_that_is_none_is_refused(service: Any, key: str) -> None:
    """A malformed key is the caller's mistake."""
    headers = {"idempotency-key": f'"{key}"'}
    answer = await service.http.post("/v1/items", json={"name": "pen"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION")


async def test_a_repeated_write_gets_the_same_answer_and_does_nothing(service: Any) -> None:
    """Every kind of write repeats status, body, ETag and location, even after the record has changed again."""
    first = await service.send("POST", "/v1/items", {"name": "pen", "rank": 1}, key="create")
    path = first.headers["location"]
    answers = {
        ("POST", "/v1/items", "create"): ({"name": "pen", "rank": 1}, first),
        ("PUT", path, "put"): ({"name": "ink"}, await service.send("PUT", path, {"name": "ink"}, key="put")),
        ("PATCH", path, "patch"): ({"rank": 7}, await service.send("PATCH", path, {"rank": 7}, key="patch")),
        ("DELETE", path, "delete"): (None, await service.send("DELETE", path, key="delete")),
    }
    for (method, target, key), (body, answer) in answers.items():
        again = await service.send(method, target, body, key=key)
        assert (again.status_code, again.content) == (answer.status_code, answer.content)
        for header in ("etag", "location", "content-type"):
            assert again.headers.get(header) == answer.headers.get(header)
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in answer.headers
    assert await count_items(service) == 0


async def test_a_key_keeps_no_record_for_who_asks_for_none(service: Any) -> None:
    """With `return=minimal` only ids and states stand in the table, by one statement and by a transaction."""
    prefer = "return=minimal"
    made = await service.send("POST", "/v1/items", {"name": "pen"}, key="a", prefer=prefer)
    await service.send("PATCH", made.headers["location"], {"rank": 7}, key="b", prefer=prefer)
    create = {"op": "create", "resource": "items", "id": str(uuid4()), "data": {"name": "ink"}}
    await service.send("POST", "/v1:transact", {"operations": [create]}, key="c", prefer=prefer)
    rows = await service.sql("SELECT convert_from(results, 'UTF8') AS kept FROM hk_keys")
    assert len(rows) == 3
    assert all(row["kept"].startswith('{"records":[["items",') for row in rows), rows


async def test_the_order_of_members_and_the_form_of_the_key_do_not_matter(service: Any) -> None:
    """Bodies are compared as JSON, and a quoted key is the same key."""
    first = await service.http.post(
        "/v1/items", content=b'{"name": "pen", "rank": 1}', headers={"idempotency-key": "k"}
    )
    again = await service.http.post(
        "/v1/items", content=b'{"rank":1,"name":"pen"}', headers={"idempotency-key": '"k"'}
    )
    assert again.json() == first.json()


async def test_keys_belong_to_their_caller(service: Any) -> None:
    """Two services with one key never see each other's answers."""
    one = await service.send("POST", "/v1/items", {"name": "pen"}, key="k", x_service_name="api_service")
    two = await service.send("POST", "/v1/items", {"name": "ink"}, key="k", x_service_name="bot_service")
    assert (one.status_code, two.status_code) == (201, 201)


async def test_a_key_with_another_request_is_refused(service: Any) -> None:
    """Another body or route under a used key does nothing and is counted as a mismatch."""
    record = (await service.send("POST", "/v1/items", {"name": "pen"}, key="k")).json()
    before = outcomes("mismatch")
    for method, path, body in (
        ("POST", "/v1/items", {"name": "ink"}),
        ("PUT", f"/v1/items/{record['id']}", {"name": "pen"}),
    ):
        answer = await service.send(method, path, body, key="k")
        assert (answer.status_code, answer.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert outcomes("mismatch") == before + 2
    assert await count_items(service) == 1


async def test_a_derived_key_with_another_body_gets_what_was_done(service: Any) -> None:
    """The rerun of a half-done handler must be able to go on."""
    first = await service.send("POST", "/v1/items", {"name": "pen"}, key=DERIVED)
    before = outcomes("diverged")
    again = await service.send("POST", "/v1/items", {"name": "ink"}, key=DERIVED)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert outcomes("diverged") == before + 1


async def test_only_what_was_done_is_recorded(service: Any) -> None:
    """A refusal is computed again: the world may have changed."""
    blocker = await service.create("pen")
    assert (await service.send("POST", "/v1/items", {"name": "pen"}, key="k")).status_code == 409
    await service.send("DELETE", f"/v1/items/{blocker['id']}")
    assert (await service.send("POST", "/v1/items", {"name": "pen"}, key="k")).status_code == 201


async def test_derived_keys_are_kept_longer(service: Any) -> None:
    """A key of a caller is kept for three days, one derived from a claim for thirty, if not short-lived."""
    for key, hours in (("k", 72), (DERIVED, 720), ("hks_1", 72)):
        await service.send("POST", "/v1/items", {"name": key}, key=key)
        [row] = await service.sql(
            "SELECT round(extract(epoch from expires_at - now()) / 3600) AS hours FROM hk_keys WHERE key = $1",
            key,
        )
        assert row["hours"] == hours


async def test_a_key_in_use_elsewhere_is_waited_for_and_then_refused(service: Any) -> None:
    """The call waits for half a second, and uses no connection of the pool meanwhile."""
    lock = lock_number("key", "anonymous", "k")
    async with service.holding("SELECT pg_advisory_xact_lock($1)", lock) as other:
        answer = await service.send("POST", "/v1/items", {"name": "pen"}, key="k")
        assert (answer.status_code, answer.json()["code"]) == (409, "IDEMPOTENCY_IN_PROGRESS")
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["retryable"] is True
        waiting = asyncio.create_task(service.send("POST", "/v1/items", {"name": "pen"}, key="k"))
        await service.until(
            "SELECT 1 FROM pg_stat_activity"
            " WHERE query LIKE '%pg_try_advisory_xact_lock%' AND datname = current_database()"
        )
        await other.execute("ROLLBACK")
        assert (await waiting).status_code == 201


async def test_twenty_calls_with_one_key_do_it_once(service: Any) -> None:
    """In each of fifty rounds one call creates the record, and nineteen get the same answer."""
    for run in range(50):
        answers = await asyncio.gather(
            *(
                service.insist("POST", "/v1/items", {"name": f"pen {run}"}, key=f"race {run}")
                for _ in range(20)
            )
        )
        assert [answer.status_code for answer in answers] == [201] * 20, [answer.text for answer in answers]
        assert sum("idempotency-replayed" in answer.headers for answer in answers) == 19
        assert len({answer.content for answer in answers}) == 1
    assert await count_items(service) == 50


async def test_two_replicas_do_it_once(service: Any, replica: Any) -> None:
    """Between processes the database decides, at any isolation, also where its snapshot is older than the lock."""
    for run, isolation in enumerate(["read_committed", "repeatable_read", "serializable"] * 7):
        owner = {"op": "create", "resource": "owners", "id": f"{run}", "data": {"id": f"{run}", "title": "A"}}
        answers = await asyncio.gather(
            *(
                one.transact_insistently(owner, isolation=isolation, key=f"race {run}")
                for one in (service, replica) * 2
            )
        )
        assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
        assert sum("idempotency-replayed" in answer.headers for answer in answers) == 3
        assert len({answer.content for answer in answers}) == 1


async def test_a_key_that_was_taken_meanwhile_is_a_lost_race(service: Any) -> None:
    """The row of the key is the last resort, whatever became of the lock."""
    await service.send("POST", "/v1/items", {"name": "pen"}, key="k")
    write = Write(
        caller="anonymous",
        key="k",
        fingerprint=b"",
        operations=(
            Create(resource=service.items, id="1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc", values={"name": "x"}),
        ),
    )
    from hybridkit.dataservice._postgres._keys import record_key

    impossible = replace(write, key="\0")  # PostgreSQL's texts have no such character
    for each, error in ((write, ConflictError), (impossible, InvalidRequestError)):
        with bind(RequestContext().within(5)), pytest.raises(error):
            async with service.store._pool.session() as session:
                await record_key(session, each, Outcome(()))


async def test_expired_keys_and_published_events_are_deleted(service: Any) -> None:
    """Housekeeping deletes what is past its retention, and leaves the rest."""
    await service.send("POST", "/v1/items", {"name": "pen"}, key="old")
    await service.send("POST", "/v1/items", {"name": "ink"}, key="new")
    await service.sql("UPDATE hk_keys SET expires_at = now() - interval '1 s' WHERE key = 'old'")
    await service.sql(
        "INSERT INTO hk_outbox (event_id, event_type, request_id, body, published_at)"
        " VALUES (gen_random_uuid(), 'old', 'r', '', now() - interval '73 h'),"
        " (gen_random_uuid(), 'new', 'r', '', now())"
    )
    assert await service.store.clean() == 2
    assert await service.store.clean() == 0
    assert [row["key"] for row in await service.sql("SELECT key FROM hk_keys")] == ["new"]
    assert [row["event_type"] for row in await service.sql("SELECT event_type FROM hk_outbox")] == ["new"]
