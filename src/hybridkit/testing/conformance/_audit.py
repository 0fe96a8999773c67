"""The audit trail: one entry for each change, whatever made it, and none for a change that was taken back."""

# ruff: noqa: S101 - these are tests

from typing import Any
from uuid import uuid4

from hybridkit.testing.conformance._resources import PLACES, THINGS
from hybridkit.testing.conformance._service import ServiceUnderTest, fresh_id, path_of

_PRICE = "12345678901234567890.123456789"
_HIDDEN = ["***", "***"]


class AuditConformance:
    """Tests of the audit trail, which is kept of things and places."""

    async def test_each_verb_leaves_one_entry(self, service: ServiceUnderTest) -> None:
        """Create, replace, change and delete: each has its entry, with versions, and values before and after."""
        thing = await service.thing(name="a", price="1.10", quantity=1)
        path = path_of(THINGS, thing["id"])
        replaced = await service.write("PUT", path, {"tag": service.tag, "name": "b", "price": "1.10"})
        assert replaced.status == 200, replaced
        assert (await service.write("PATCH", path, {"price": "2.25", "details": {"a": 1}})).status == 200
        assert (await service.write("PATCH", path, {"details": {"b": [2]}})).status == 200
        assert (await service.write("DELETE", path)).status == 204
        created, put, changed, merged, deleted = await _history(service, path)
        assert [each["operation"] for each in (created, put, changed, merged, deleted)] == [
            "create",
            "update",
            "update",
            "update",
            "delete",
        ]
        assert [each["record_version"] for each in (created, put, changed, merged, deleted)] == [
            1,
            2,
            3,
            4,
            5,
        ]
        assert created["changes"]["name"] == [None, "a"]
        assert put["changes"] == {"name": ["a", "b"], "quantity": [1, 0]}
        assert changed["changes"] == {"price": ["1.10", "2.25"], "details": [None, {"a": 1}]}
        assert merged["changes"] == {"details": [{"a": 1}, {"a": 1, "b": [2]}]}
        assert deleted["changes"]["price"] == ["2.25", None]
        assert created["created_at"] == thing["updated_at"]

    async def test_the_first_entry_has_the_record_as_it_is_read(self, service: ServiceUnderTest) -> None:
        """No value loses anything on its way through the trail: decimals, large integers, times, documents."""
        thing = await service.thing(
            name='q"\\ \u00e9 \U0001f600',
            kind="ink",
            price=_PRICE,
            quantity=-(2**31),
            weight=0.1,
            rank=7,
            due_at="2026-02-03T04:05:06.789Z",
            details={"big": 2**53 + 1, "small": 1e-7, "nested": [{"x": None}, True, "t"]},
            marks=[1, "two", [3.5]],
            parcel={"width": 3, "pieces": [{"label": "p", "weight": 1.5, "cost": "0.10"}]},
        )
        [created] = await _history(service, path_of(THINGS, thing["id"]))
        kept = {name: after for name, (_, after) in created["changes"].items()}
        system = {"id", "version", "updated_at", "etag"}
        shown = {name: value for name, value in thing.items() if value is not None and name not in system}
        assert kept == shown
        assert all(before is None for before, _ in created["changes"].values())

    async def test_a_batch_leaves_an_entry_for_each_record(self, service: ServiceUnderTest) -> None:
        """Batches of creates, updates, upserts and deletes are told record by record."""
        service.needs("transactions")
        ids = [fresh_id(), fresh_id()]
        new = [{"id": each, "data": {"tag": service.tag, "name": "a"}} for each in ids]
        assert (await service.write("POST", f"{THINGS.path}:batch_create", {"items": new})).status == 200
        changes = [{"id": each, "data": {"name": "b"}} for each in ids]
        assert (await service.write("POST", f"{THINGS.path}:batch_update", {"items": changes})).status == 200
        whole = [{"id": each, "data": {"tag": service.tag, "name": "c"}} for each in ids]
        assert (await service.write("POST", f"{THINGS.path}:batch_upsert", {"items": whole})).status == 200
        gone = [{"id": each} for each in ids]
        assert (await service.write("POST", f"{THINGS.path}:batch_delete", {"items": gone})).status == 200
        for each in ids:
            entries = await _history(service, path_of(THINGS, each))
            assert [entry["operation"] for entry in entries] == ["create", "update", "update", "delete"]
            assert [entry["changes"]["name"] for entry in entries] == [
                [None, "a"],
                ["a", "b"],
                ["b", "c"],
                ["c", None],
            ]

    async def test_a_transaction_leaves_an_entry_for_each_change(self, service: ServiceUnderTest) -> None:
        """Operations of a transaction are told one by one, also two changes of one record; an assert isn't."""
        service.needs("transactions")
        one, two = fresh_id(), fresh_id()
        answer = await service.transact(
            {"op": "create", "resource": THINGS.name, "id": one, "data": {"tag": service.tag, "quantity": 5}},
            {"op": "update", "resource": THINGS.name, "id": one, "increment": {"quantity": -2}},
            {"op": "assert", "resource": THINGS.name, "id": one},
            {"op": "upsert", "resource": THINGS.name, "id": two, "data": {"tag": service.tag, "name": "u"}},
            {"op": "delete", "resource": THINGS.name, "id": two},
        )
        assert answer.status == 200, answer
        created, counted = await _history(service, path_of(THINGS, one))
        assert created["changes"]["quantity"] == [None, 5]
        assert (counted["operation"], counted["changes"]) == ("update", {"quantity": [5, 3]})
        operations = [entry["operation"] for entry in await _history(service, path_of(THINGS, two))]
        assert operations == ["create", "delete"]

    async def test_what_is_taken_back_leaves_no_entry(self, service: ServiceUnderTest) -> None:
        """A refused transaction and a dry run are in no history."""
        service.needs("transactions")
        one = fresh_id()
        create = {"op": "create", "resource": THINGS.name, "id": one, "data": {"tag": service.tag}}
        missing = {"op": "delete", "resource": THINGS.name, "id": fresh_id()}
        assert (await service.transact(create, missing)).status == 404
        dry = await service.write("POST", "/v1:transact", {"operations": [create]}, prefer="tx=rollback")
        assert dry.status == 200, dry
        assert await _history(service, path_of(THINGS, one)) == []

    async def test_a_refused_and_a_repeated_write_add_nothing(self, service: ServiceUnderTest) -> None:
        """A write that is refused is in no history; one that is repeated under its key is there once."""
        thing = await service.thing(name="a")
        path, key = path_of(THINGS, thing["id"]), uuid4().hex
        refused = await service.write("PATCH", path, {"name": "b"}, if_match='"9-9"')
        assert refused.status == 412, refused
        for _ in range(2):
            assert (await service.write("PATCH", path, {"name": "c"}, key=key)).status == 200
        assert [entry["changes"].get("name") for entry in await _history(service, path)] == [
            [None, "a"],
            ["a", "c"],
        ]

    async def test_a_hidden_field_is_told_without_its_values(self, service: ServiceUnderTest) -> None:
        """Of a field in `audit_hide` the trail has only that it has changed."""
        thing = await service.thing(code=uuid4().hex)
        path = path_of(THINGS, thing["id"])
        assert (await service.write("PATCH", path, {"code": uuid4().hex})).status == 200
        assert (await service.write("PATCH", path, {"name": "x"})).status == 200
        assert (await service.write("DELETE", path)).status == 204
        created, changed, named, deleted = await _history(service, path)
        assert created["changes"]["code"] == changed["changes"]["code"] == _HIDDEN
        assert named["changes"] == {"name": ["", "x"]}
        assert deleted["changes"]["code"] == _HIDDEN

    async def test_a_soft_delete_takes_values_away_and_an_undelete_brings_them_back(
        self, service: ServiceUnderTest
    ) -> None:
        """Of a record with soft deletes the trail reads as if it was removed and made again."""
        place = f"p {uuid4().hex}/a:b"
        path = path_of(PLACES, place)
        assert (await service.write("PUT", path, {"id": place, "title": "here"})).status == 201
        assert (await service.write("DELETE", path)).status == 204
        assert (await service.write("POST", f"{path}:undelete")).status == 200
        assert (await service.write("POST", f"{path}:undelete")).status == 200
        created, deleted, back = await _history(service, path)
        assert [each["operation"] for each in (created, deleted, back)] == ["create", "delete", "undelete"]
        assert [each["changes"]["title"] for each in (created, deleted, back)] == [
            [None, "here"],
            ["here", None],
            [None, "here"],
        ]
        assert created["record_id"] == place
        assert [each["record_version"] for each in (created, deleted, back)] == [1, 2, 3]

    async def test_a_natural_key_may_end_as_the_route_does(self, service: ServiceUnderTest) -> None:
        """An encoded colon belongs to the key: such a record is read, and has a history."""
        place = f"{uuid4().hex}:history"
        path = path_of(PLACES, place)
        assert (await service.write("PUT", path, {"id": place, "title": "t"})).status == 201
        assert (await service.get(path)).json()["title"] == "t"
        assert [entry["record_id"] for entry in await _history(service, path)] == [place]

    async def test_an_entry_says_who(self, service: ServiceUnderTest) -> None:
        """The caller, its user and the request are those of the write, on both ways in which it may be done."""
        user, request = f"user-{uuid4().hex}", f"req-{uuid4().hex}"
        who = {"x_user_id": user, "x_request_id": request}
        record_id = fresh_id()
        body = {"id": record_id, "tag": service.tag}
        assert (await service.write("POST", THINGS.path, body, **who)).status == 201
        path = path_of(THINGS, record_id)
        assert (await service.write("PATCH", path, {"name": "n"}, **who)).status == 200
        assert (await service.write("PATCH", path, {"name": "m"})).status == 200
        *mine, other = await _history(service, path)
        assert [(each["user_id"], each["request_id"]) for each in mine] == [(user, request)] * 2
        assert {each["caller"] for each in (*mine, other)} == {"conformance"}
        assert (other["user_id"], other["request_id"] == request) == (None, False)

    async def test_the_whole_trail_is_found_by_user_and_in_pages(self, service: ServiceUnderTest) -> None:
        """`GET /v1/audit` filters, orders, pages and exports as for any resource, and `:query` takes a body."""
        service.needs("audit")
        user = f"user-{uuid4().hex}"
        for number in range(3):
            body = {"tag": service.tag, "name": str(number)}
            assert (await service.write("POST", THINGS.path, body, x_user_id=user)).status == 201
        mine = [("user_id", f"eq.{user}"), ("resource", f"eq.{THINGS.name}")]
        first = await service.get("/v1/audit", [*mine, ("order", "id.desc"), ("page_size", "2")])
        assert [entry["changes"]["name"] for entry in first.items] == [[None, "2"], [None, "1"]]
        token = first.json()["next_page_token"]
        rest = await service.get(
            "/v1/audit", [*mine, ("order", "id.desc"), ("page_size", "2"), ("page_token", token)]
        )
        assert [entry["changes"]["name"] for entry in rest.items] == [[None, "0"]]
        asked = await service.ask(
            "POST", "/v1/audit:query", {"where": {"eq": ["user_id", user]}, "select": ["changes", "caller"]}
        )
        assert [entry["changes"]["name"][1] for entry in asked.items] == ["0", "1", "2"]
        lines = await service.get("/v1/audit", mine, accept="application/x-ndjson")
        assert lines.body.count(b"\n") == 4, lines
        counted = await service.get("/v1/audit", [*mine, ("page_size", "1")], prefer="count=exact")
        assert counted.json()["total_size"] == 3

    async def test_a_history_is_filtered_and_empty_where_there_is_none(
        self, service: ServiceUnderTest
    ) -> None:
        """The route takes the trail's filters; a record that never was has an empty history, an impossible id 404."""
        service.needs("audit")
        thing = await service.thing(name="a")
        path = path_of(THINGS, thing["id"])
        assert (await service.write("PATCH", path, {"name": "b"})).status == 200
        updates = await service.get(f"{path}:history", [("operation", "eq.update")])
        assert [entry["changes"] for entry in updates.items] == [{"name": ["a", "b"]}]
        assert await _history(service, path_of(THINGS, fresh_id())) == []
        assert (await service.get(f"{THINGS.path}/nonsense:history")).problem == (404, "NOT_FOUND")

    async def test_nobody_writes_the_trail(self, service: ServiceUnderTest) -> None:
        """No route and no operation of a transaction changes, adds or removes an entry."""
        thing = await service.thing(name="a")
        path = path_of(THINGS, thing["id"])
        [entry] = await _history(service, path)
        for method, target in (
            ("POST", "/v1/audit"),
            ("PUT", f"/v1/audit/{entry['id']}"),
            ("PATCH", f"/v1/audit/{entry['id']}"),
            ("DELETE", f"/v1/audit/{entry['id']}"),
            ("POST", "/v1/audit:batch_delete"),
            ("DELETE", f"{path}:history"),
        ):
            assert (await service.write(method, target, {"caller": "x"})).status in (404, 405), target
        removal = {"op": "delete", "resource": "audit", "id": entry["id"]}
        assert (await service.transact(removal)).status in (404, 422)
        assert await _history(service, path) == [entry]


async def _history(service: ServiceUnderTest, path: str) -> list[Any]:
    """Return all entries of a record, in their order; skip the test where the service has no audit trail."""
    service.needs("audit")
    answer = await service.get(f"{path}:history", [("page_size", "1000")])
    return answer.items
