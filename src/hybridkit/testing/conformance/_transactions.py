"""Writes of several records, all of them or none: transactions and batches."""

# ruff: noqa: S101 - these are tests

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from hybridkit.codec import format_timestamp, now
from hybridkit.testing.conformance._resources import LEDGERS, THINGS
from hybridkit.testing.conformance._service import Answer, ServiceUnderTest, fresh_id


def _create(service: ServiceUnderTest, record_id: str | None = None, **values: object) -> dict[str, Any]:
    data = {"tag": service.tag, **values}
    return {"op": "create", "resource": THINGS.name, "id": record_id or fresh_id(), "data": data}


def _on(op: str, record: dict[str, Any], **members: object) -> dict[str, Any]:
    return {"op": op, "resource": THINGS.name, "id": record["id"], **members}


@pytest.mark.asyncio
class TransactionsConformance:
    """Tests of `POST /v1:transact` and of the batches."""

    async def test_one_operation_needs_no_transactions(self, service: ServiceUnderTest) -> None:
        """It is served on every database."""
        answer = await service.transact(_create(service, name="pen"))
        assert (answer.status, answer.json()["results"][0]["name"]) == (200, "pen")

    async def test_what_a_transaction_leaves_out_is_empty(self, service: ServiceUnderTest) -> None:
        """One that only emits has no operations."""
        answer = await service.write("POST", "/v1:transact", {})
        assert (answer.status, answer.json()) == (200, {"results": []})

    async def test_without_transactions_several_are_refused(self, service: ServiceUnderTest) -> None:
        """The service answers 501 before any of them is done."""
        if service.has("transactions"):
            pytest.skip("the service has transactions")
        answer = await service.transact(_create(service), _create(service))
        assert answer.problem == (501, "TRANSACTIONS_UNAVAILABLE")
        items = {"items": [{"data": {"tag": service.tag}}] * 2}
        batch = await service.write("POST", f"{THINGS.path}:batch_create", items)
        assert batch.problem == (501, "TRANSACTIONS_UNAVAILABLE")
        assert await service.find() == []

    async def test_operations_see_what_came_before(self, service: ServiceUnderTest) -> None:
        """Ids are the client's, so that records of one transaction can refer to each other."""
        service.needs("transactions")
        made = fresh_id()
        old = await service.thing(name="old")
        answer = await service.transact(
            _create(service, made, name="new", rank=1),
            _on("update", {"id": made}, data={"name": "newer"}, increment={"rank": 2}),
            _on("assert", old, if_match=old["etag"]),
            _on("upsert", old, data={"tag": service.tag, "name": "replaced"}),
            _on("delete", {"id": made}),
        )
        results = answer.json()["results"]
        assert [result and result["name"] for result in results] == ["new", "newer", None, "replaced", None]
        assert results[1]["rank"] == 3
        assert await service.names() == ["replaced"]

    async def test_all_or_nothing(self, service: ServiceUnderTest) -> None:
        """Whichever operation fails, and for whatever reason, the ones before it leave nothing."""
        service.needs("transactions")
        old = await service.thing(name="old", rank=1, code=service.tag)
        missing = {"id": fresh_id()}
        failing: list[tuple[dict[str, Any], tuple[int, str]]] = [
            (_on("update", missing, data={"rank": 1}), (404, "NOT_FOUND")),
            (_on("delete", missing), (404, "NOT_FOUND")),
            (_on("assert", missing), (404, "NOT_FOUND")),
            (_on("assert", old, if_match='"9-9"'), (412, "PRECONDITION_FAILED")),
            (_on("delete", old, if_match='"9-9"'), (412, "PRECONDITION_FAILED")),
            (_create(service, code=service.tag), (409, "UNIQUE_VIOLATION")),
            (_create(service, old["id"]), (409, "UNIQUE_VIOLATION")),
            (_on("update", old, require={"gt": ["rank", 2]}), (412, "REQUIREMENT_NOT_MET")),
            (_on("update", old, data={"name": "x" * 101}), (422, "VALIDATION")),
            (_on("update", old, increment={"name": 1}), (422, "VALIDATION")),
        ]
        for operation, expected in failing:
            answer = await service.transact(
                _create(service, name="new"), _on("update", old, data={"rank": 2}), operation
            )
            assert answer.problem == expected, operation
            assert [item["rank"] for item in await service.find()] == [1], operation

    async def test_a_problem_names_its_operation(self, service: ServiceUnderTest) -> None:
        """The pointers begin with the operation's place in the request."""
        service.needs("transactions")
        answer = await service.transact(_create(service), {**_create(service), "data": {"tag": 1, "odd": 2}})
        assert answer.problem == (422, "VALIDATION")
        assert sorted(answer.pointers) == ["/operations/1/data/odd", "/operations/1/data/tag"]
        unknown = await service.transact({**_create(service), "resource": "nothing"})
        assert unknown.pointers == ["/operations/0/resource"]

    async def test_a_replacement_gives_all_fields(self, service: ServiceUnderTest) -> None:
        """What its data leaves out has its default; its ETag and its version are new."""
        old = await service.thing(name="old", rank=3)
        data = {"tag": service.tag, "name": "new"}
        answer = await service.transact(_on("replace", old, data=data, if_match=old["etag"]))
        assert answer.status == 200, answer
        [new] = answer.json()["results"]
        assert (new["name"], new["rank"], new["version"]) == ("new", None, 2)
        assert new["created_at"] == old["created_at"]
        assert await service.find() == [new]
        again = await service.transact(_on("replace", new, data=data))
        assert again.json()["results"][0]["version"] == 3

    async def test_a_replacement_is_of_one_state(self, service: ServiceUnderTest) -> None:
        """Of ten concurrent ones of the same state one is done, and the others are told the state of now."""
        old = await service.thing(name="old")

        async def replace(number: int) -> Answer:
            data = {"tag": service.tag, "name": f"new {number}"}
            while True:
                answer = await service.transact(_on("replace", old, data=data, if_match=old["etag"]))
                if answer.status < 400 or not answer.json()["retryable"]:
                    return answer
                await asyncio.sleep(0.05)

        answers = await asyncio.gather(*map(replace, range(10)))
        assert sorted(answer.status for answer in answers) == [200] + [412] * 9
        [new] = await service.find()
        refused = [answer for answer in answers if answer.status == 412]
        assert {answer.json()["current"] for answer in refused} == {new["etag"]}
        assert [answer.pointers for answer in refused] == [["/operations/0"]] * 9

    async def test_a_replacement_creates_nothing(self, service: ServiceUnderTest) -> None:
        """A record that isn't there is in no state: 412, with or without a tag."""
        missing = _on("replace", {"id": fresh_id()}, data={"tag": service.tag})
        for operation in (missing, {**missing, "if_match": '"1-1"'}, {**missing, "if_match": '"no tag"'}):
            answer = await service.transact(operation)
            assert answer.problem == (412, "PRECONDITION_FAILED"), operation
        assert await service.find() == []

    async def test_a_replacement_is_checked(self, service: ServiceUnderTest) -> None:
        """Its data is that of a whole record, and a unique value stays unique."""
        old = await service.thing(name="old")
        await service.thing(name="other", code=service.tag)
        odd = await service.transact(
            _on("replace", old, data={"tag": service.tag, "odd": 1}, if_match=old["etag"])
        )
        assert (odd.problem, odd.pointers) == ((422, "VALIDATION"), ["/operations/0/data/odd"])
        taken = {"tag": service.tag, "code": service.tag}
        twice = await service.transact(_on("replace", old, data=taken, if_match=old["etag"]))
        assert twice.problem == (409, "UNIQUE_VIOLATION")
        assert twice.pointers == ["/operations/0/data/code"]

    async def test_a_repeated_replacement_is_done_once(self, service: ServiceUnderTest) -> None:
        """With its key it answers as before, and a minimal one without the record."""
        record = await service.thing(name="old")
        for minimal in (False, True):
            headers = {"prefer": "return=minimal"} if minimal else {}
            data = {"tag": service.tag, "name": f"new {minimal}"}
            body = {"operations": [_on("replace", record, data=data, if_match=record["etag"])]}
            key = fresh_id()
            first = await service.write("POST", "/v1:transact", body, key=key, **headers)
            again = await service.write("POST", "/v1:transact", body, key=key, **headers)
            assert first.status == again.status == (204 if minimal else 200), first
            assert first.body == again.body
            assert again.headers["idempotency-replayed"] == "true"
            [record] = await service.find()
        assert (record["name"], record["version"]) == ("new True", 3)

    async def test_what_a_minimal_transaction_left_is_read_again(self, service: ServiceUnderTest) -> None:
        """Its key keeps no records: a repetition that asks for them gets those of now."""
        body = {"operations": [_create(service, name="pen")]}
        key = fresh_id()
        first = await service.write("POST", "/v1:transact", body, key=key, prefer="return=minimal")
        assert (first.status, first.body) == (204, b"")
        [record] = await service.find()
        change = await service.transact(_on("update", record, data={"name": "ink"}))
        assert change.status == 200
        again = await service.write("POST", "/v1:transact", body, key=key)
        assert again.json()["results"] == change.json()["results"]
        assert again.headers["idempotency-reread"] == "true"

    async def test_a_conflict_names_its_operation(self, service: ServiceUnderTest) -> None:
        """A 412 and a 409 have a pointer to it, so that a client needs no text to tell which record was meant."""
        service.needs("transactions")
        old = await service.thing(name="old", code=service.tag)
        first = _create(service)
        for operation, pointer in (
            (_on("assert", old, if_match='"9-9"'), "/operations/1"),
            (_on("update", old, data={"rank": 1}, if_match='"9-9"'), "/operations/1"),
            (_on("update", old, data={"rank": 1}, require={"gt": ["rank", 2]}), "/operations/1/require"),
            (_on("replace", old, data={"tag": service.tag}, if_match='"9-9"'), "/operations/1"),
            (_on("delete", old, if_match='"9-9"'), "/operations/1"),
            (_create(service, old["id"]), "/operations/1/id"),
            (_create(service, code=service.tag), "/operations/1/data/code"),
        ):
            answer = await service.transact(first, operation)
            assert answer.status in {409, 412}, answer
            assert answer.pointers == [pointer], operation

    async def test_an_increment_holds_its_condition(self, service: ServiceUnderTest) -> None:
        """Ten concurrent requests take one of five, and five of them get it."""
        stock = await service.thing(quantity=5)
        take = _on("update", stock, increment={"quantity": -1}, require={"gte": ["quantity", 1]})

        async def take_one() -> int:
            while True:
                answer = await service.transact(take)
                if answer.status < 400 or not answer.json()["retryable"]:
                    return answer.status
                await asyncio.sleep(0.05)

        statuses = await asyncio.gather(*(take_one() for _ in range(10)))
        assert sorted(statuses) == [200] * 5 + [412] * 5
        [left] = await service.find()
        assert left["quantity"] == 0

    async def test_numbers_of_each_kind_grow(self, service: ServiceUnderTest) -> None:
        """Decimals stay exact; a field can't be set and added to at once."""
        record = await service.thing(price="1.10", quantity=1, weight=0.5, rank=None)
        answer = await service.transact(
            _on("update", record, increment={"price": 2, "quantity": -3, "weight": 0.25, "rank": 4})
        )
        [changed] = answer.json()["results"]
        assert (changed["price"], changed["quantity"], changed["weight"], changed["rank"]) == (
            "3.10",
            -2,
            0.75,
            4,
        )
        both = await service.transact(_on("update", record, data={"rank": 1}, increment={"rank": 1}))
        assert both.problem == (422, "VALIDATION")

    async def test_a_requirement_comes_before_the_sum(self, service: ServiceUnderTest) -> None:
        """Who asks for what is not there any more hears that, and not that the sum would not fit its field."""
        record = await service.thing(weight=1.7e308)
        more = _on("update", record, increment={"weight": 1.7e308})
        refused = await service.transact({**more, "require": {"lt": ["weight", 5]}})
        assert refused.problem == (412, "REQUIREMENT_NOT_MET")
        unfit = await service.transact({**more, "require": {"gt": ["weight", 5]}})
        assert unfit.problem == (422, "VALIDATION")

    @pytest.mark.parametrize(
        ("values", "field", "amount"),
        [
            ({"quantity": 1}, "quantity", 0.5),
            ({"quantity": 2**31 - 1}, "quantity", 2**63),
            ({"quantity": -(2**31)}, "quantity", -(2**63)),
            ({}, "rank", 0.5),
            ({"name": "a"}, "name", 1),
            ({"kind": "pen"}, "kind", 1),
            ({}, "code", 1),
            ({}, "is_active", 1),
            ({}, "due_at", 1),
            ({"due_at": "2026-01-15T10:30:00Z"}, "due_at", 1),
            ({}, "details", 1),
            ({"details": {"size": 1}}, "details", 1),
            ({"weight": 1.5}, "weight", "Infinity"),
            ({"weight": 1e308}, "weight", 1e308),
            ({"quantity": 1}, "quantity", "NaN"),
            ({"price": "1.50"}, "price", "-Infinity"),
            ({"price": "1.50"}, "price", "1_0"),
            ({"price": "1.50"}, "price", " 1"),
            ({"price": "1.50"}, "price", ""),
            ({"price": "1.50"}, "price", None),
            ({"price": "1.50"}, "price", True),
            ({"price": "1.50"}, "price", "1e9999"),
            ({"quantity": 1}, "quantity", "1"),
            ({"weight": 1.5}, "weight", "0.5"),
        ],
        ids=str,
    )
    async def test_an_increment_keeps_to_its_fields_type(
        self, service: ServiceUnderTest, values: dict[str, Any], field: str, amount: object
    ) -> None:
        """A sum that the field can't have is refused, whatever is stored there, and changes nothing."""
        record = await service.thing(**values)
        answer = await service.transact(_on("update", record, increment={field: amount}))
        assert answer.status == 422, answer
        assert await service.find() == [record]

    async def test_a_decimal_grows_by_decimals(self, service: ServiceUnderTest) -> None:
        """They are texts, as the values of the field are, and what no float is stays exact."""
        service.needs("transactions")
        record = await service.thing(price="0.10")
        exact = "9000000.05"
        for sign, amounts in (("", ("0.20", exact)), ("-", (exact, "0.20"))):
            operations = [_on("update", record, increment={"price": f"{sign}{amount}"}) for amount in amounts]
            answer = await service.transact(*operations)
            assert answer.status == 200, answer
        grown = answer.json()["results"][-1]
        assert Decimal(grown["price"]) == Decimal("0.10")
        mixed = _on("update", record, increment={"price": "0.05", "weight": 0.1, "rank": 2})
        changed = (await service.transact(mixed)).json()["results"][0]
        assert (Decimal(changed["price"]), changed["weight"], changed["rank"]) == (Decimal("0.15"), 0.1, 2)

    async def test_an_increment_of_no_value_begins_at_zero(self, service: ServiceUnderTest) -> None:
        """The whole range of the type can be reached."""
        record = await service.thing()
        answer = await service.transact(
            _on("update", record, increment={"price": 1.25, "weight": 2, "rank": -(2**31)})
        )
        [changed] = answer.json()["results"]
        assert (changed["price"], changed["weight"], changed["rank"]) == ("1.25", 2.0, -(2**31))
        assert await service.find() == [changed]

    async def test_a_counter_is_made_or_added_to(self, service: ServiceUnderTest) -> None:
        """Concurrent callers count from the first on: a new record begins with its data, another keeps the rest."""
        record_id = fresh_id()

        async def count(**data: Any) -> Answer:
            counted = {
                "op": "upsert",
                "resource": THINGS.name,
                "id": record_id,
                "data": {"tag": service.tag, "quantity": 10, **data},
                "increment": {"quantity": 1, "rank": 2, "price": 1},
            }
            while True:
                answer = await service.transact(counted)
                if answer.status < 400 or not answer.json()["retryable"]:
                    return answer
                await asyncio.sleep(0.05)

        first = await count(name="first")
        assert first.status == 200, first
        answers = await asyncio.gather(*(count(name="later", quantity=99) for _ in range(5)))
        assert [answer.status for answer in answers] == [200] * 5
        [record] = await service.find()
        assert (record["name"], record["quantity"], record["rank"], record["price"]) == (
            "first",
            16,
            12,
            "6",
        )
        assert record["version"] == 6

    async def test_an_upsert_adds_to_numbers_only(self, service: ServiceUnderTest) -> None:
        """What is no number is refused with its place, for a new record and for one that is there."""
        old = await service.thing(name="a")
        for record_id in (fresh_id(), old["id"]):
            for field in ("name", "due_at", "odd"):
                upsert = {
                    "op": "upsert",
                    "resource": THINGS.name,
                    "id": record_id,
                    "data": {"tag": service.tag},
                }
                answer = await service.transact({**upsert, "increment": {field: 1}})
                assert answer.problem == (422, "VALIDATION"), answer
                assert answer.pointers == [f"/operations/0/increment/{field}"]
        assert await service.find() == [old]

    async def test_a_policy_holds_in_a_transaction(self, service: ServiceUnderTest) -> None:
        """A resource that requires a condition requires it here too."""
        made = await service.write("POST", LEDGERS.path, {"balance": 1})
        update = {"op": "update", "resource": LEDGERS.name, "id": made.json()["id"], "data": {"balance": 2}}
        assert (await service.transact(update)).problem == (428, "PRECONDITION_REQUIRED")
        assert (await service.transact({**update, "if_match": made.headers["etag"]})).status == 200

    async def test_a_dry_run_tells_and_changes_nothing(self, service: ServiceUnderTest) -> None:
        """Its results are those of the transaction, which is rolled back."""
        service.needs("transactions")
        body = {"operations": [_create(service, name="a"), _create(service, name="b")]}
        answer = await service.write("POST", "/v1:transact", body, prefer="tx=rollback")
        assert [result["name"] for result in answer.json()["results"]] == ["a", "b"]
        assert "tx=rollback" in answer.headers["preference-applied"]
        assert await service.find() == []

    async def test_events_go_with_the_records(self, service: ServiceUnderTest) -> None:
        """An event that comes again is the same event."""
        service.needs("events")
        event = {
            "event_type": "thing.created",
            "version": 1,
            "event_id": fresh_id(),
            "timestamp": format_timestamp(now()),
            "key": service.tag,
            "request_id": "r",
            "user_id": None,
            "data": {"tag": service.tag},
        }
        for _ in range(2):
            answer = await service.transact(_create(service), emit=[event])
            assert answer.status == 200, answer

    async def test_a_message_that_waits_can_be_cancelled(self, service: ServiceUnderTest) -> None:
        """Ids of no waiting message are passed over; what is no id, and too many of them, are refused."""
        service.needs("events")
        event_id = fresh_id()
        timer: dict[str, Any] = {
            "event_type": "thing.due",
            "event_id": event_id,
            "timestamp": format_timestamp(now()),
            "not_before": format_timestamp(now() + timedelta(days=1)),
            "request_id": "r",
            "data": {},
        }
        record = (await service.transact(_create(service), emit=[timer])).json()["results"][0]
        again = await service.transact(_on("update", record, data={"rank": 1}), cancel=[event_id, fresh_id()])
        assert again.status == 200, again
        assert (await service.transact(cancel=[event_id])).status == 200
        assert (await service.transact(cancel=["no uuid"])).pointers == ["/cancel/0"]
        many = await service.transact(cancel=[fresh_id() for _ in range(101)])
        assert many.problem == (422, "VALIDATION")

    async def test_an_event_that_no_message_can_carry_is_refused(self, service: ServiceUnderTest) -> None:
        """Stored, it could never be sent; what is not refused here comes through."""
        service.needs("events")
        event: dict[str, Any] = {
            "event_type": "thing.created",
            "timestamp": format_timestamp(now()),
            "key": service.tag,
            "request_id": "auth0|17",
            "user_id": "\u00dcnal \u00c7elik",
            "data": {},
        }
        for wrong in (
            {"event_type": "x" * 128},
            {"event_type": "two\r\nlines"},
            {"event_type": "a b"},
            {"event_type": ""},
            {"queue": "x" * 128},
            {"queue": "a\tb"},
            {"key": "k" * 1025},
            {"key": "a\0b"},
            {"request_id": ""},
            {"request_id": "x" * 200_000},
            {"request_id": "a\r\nb"},
            {"user_id": "u" * 256},
            {"user_id": "a\u2028b"},
            {"traceparent": "\u00fc"},
            {"traceparent": "0" * 129},
            {"tracestate": "a=b\r\nc"},
            {"tracestate": "t" * 513},
            {"version": 0},
            {"version": 2**31},
            {"timestamp": "9999-12-31T23:59:59-12:00"},
            {"not_before": "0001-01-01T00:00:00+12:00"},
            {"event_id": "no uuid"},
        ):
            emitted = [{**event, "event_id": fresh_id()}, {**event, "event_id": fresh_id(), **wrong}]
            answer = await service.transact(emit=emitted)
            assert answer.problem == (422, "VALIDATION"), wrong
            assert answer.pointers == [f"/emit/1/{next(iter(wrong))}"]
        assert (await service.transact(emit=[{**event, "event_id": fresh_id()}])).status == 200

    async def test_a_transaction_is_limited(self, service: ServiceUnderTest) -> None:
        """More than 100 operations, unknown operations and unknown isolation levels are refused."""
        answer = await service.transact(*(_create(service) for _ in range(101)))
        assert answer.problem == (422, "VALIDATION")
        odd = await service.transact({"op": "drop", "resource": THINGS.name, "id": "x"})
        assert odd.problem == (422, "VALIDATION")
        assert (await service.transact(isolation="none")).problem == (422, "VALIDATION")

    # ── batches ──────────────────────────────────────────────────────────────────────────────────

    async def test_a_batch_does_everything(self, service: ServiceUnderTest) -> None:
        """Creates, updates, upserts and deletes answer in the order of their items."""
        service.needs("transactions")
        ids = [fresh_id() for _ in range(3)]
        creates = [{"id": one, "data": {"tag": service.tag, "rank": at}} for at, one in enumerate(ids)]
        made = (await _batch(service, "create", *creates)).items
        assert [item["id"] for item in made] == ids
        changes = [{"id": item["id"], "data": {"rank": 9}, "if_match": item["etag"]} for item in made]
        assert {item["version"] for item in (await _batch(service, "update", *changes)).items} == {2}
        puts = [{"id": one, "data": {"tag": service.tag}} for one in (*ids[:2], fresh_id())]
        assert [item["version"] for item in (await _batch(service, "upsert", *puts)).items] == [3, 3, 1]
        gone = await _batch(service, "delete", *({"id": one} for one in ids))
        assert gone.items == [None, None, None]
        assert len(await service.find()) == 1

    async def test_a_batch_happens_as_a_whole(self, service: ServiceUnderTest) -> None:
        """One item that fails leaves the others undone."""
        service.needs("transactions")
        record = await service.thing(rank=1)
        for kind, bad, expected in (
            ("create", {"id": record["id"], "data": {"tag": service.tag}}, (409, "UNIQUE_VIOLATION")),
            ("update", {"id": fresh_id(), "data": {"rank": 2}}, (404, "NOT_FOUND")),
            ("delete", {"id": record["id"], "if_match": '"9-9"'}, (412, "PRECONDITION_FAILED")),
        ):
            good = (
                {"id": record["id"], "data": {"rank": 2}}
                if kind == "update"
                else {"data": {"tag": service.tag}}
            )
            items = [bad] if kind == "delete" else [good, bad]
            assert (await _batch(service, kind, *items)).problem == expected, kind
        assert await service.find() == [record]

    async def test_a_batch_is_checked(self, service: ServiceUnderTest) -> None:
        """The number of items and the members of each are checked for every kind of batch."""
        too_many: list[object] = [{"data": {"tag": service.tag}}] * 1001
        batches: list[list[object]] = [[], too_many, [{"data": {"odd": 1}}], [{}]]
        for items in batches:
            answer = await _batch(service, "create", *items)
            assert answer.problem == (422, "VALIDATION"), items[:2]
        for kind in ("update", "upsert", "delete"):
            answer = await _batch(service, kind, {"data": {"tag": service.tag}})
            assert answer.problem == (422, "VALIDATION"), kind

    async def test_a_batch_may_be_limited_by_its_caller(self, service: ServiceUnderTest) -> None:
        """`max-affected` refuses it before anything is done."""
        items = {"items": [{"data": {"tag": service.tag}}] * 3}
        answer = await service.write("POST", f"{THINGS.path}:batch_create", items, prefer="max-affected=2")
        assert answer.problem == (422, "VALIDATION")
        assert await service.find() == []


async def _batch(service: ServiceUnderTest, kind: str, *items: object) -> Any:
    return await service.write("POST", f"{THINGS.path}:batch_{kind}", {"items": list(items)})
