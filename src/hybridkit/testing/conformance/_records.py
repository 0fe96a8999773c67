"""Single records: writing and reading, entity tags, conditions, soft deletes, preferences."""

# ruff: noqa: S101 - these are tests

from typing import Any

import pytest

from hybridkit.testing.conformance._resources import LEDGERS, PLACES, THINGS
from hybridkit.testing.conformance._service import ServiceUnderTest, fresh_id, path_of


@pytest.mark.asyncio
class RecordsConformance:
    """Tests of one record at a time."""

    async def test_a_created_record_has_a_location_and_a_tag(self, service: ServiceUnderTest) -> None:
        """The tag is the record's own, its version is 1, and defaults are filled in."""
        answer = await service.write("POST", THINGS.path, {"tag": service.tag, "name": "pen"})
        record = answer.json()
        assert answer.status == 201
        assert answer.headers["location"] == path_of(THINGS, record["id"])
        assert answer.headers["etag"] == record["etag"]
        assert (record["version"], record["name"], record["is_active"]) == (1, "pen", True)

    async def test_scalars_are_canonical_on_every_path(self, service: ServiceUnderTest) -> None:
        """Decimals are strings, times UTC with milliseconds at most, UUIDs lower case; the bytes are the same."""
        answer = await service.write(
            "POST",
            THINGS.path,
            {
                "tag": service.tag,
                "name": '\u00fcn\u00ef \U0001f58b "\\/\u2028',
                "price": "1234567.25",
                "weight": 0.5,
                "due_at": "2026-01-15T11:30:00.123987+01:00",
                "owner_id": "1F1E54A2-F5D4-612B-8824-DDCDFEBDD6FC",
                "details": {"at": "2026-01-01", "n": 1.5, "list": [1, None, {"deep": True}], "none": None},
            },
        )
        record = answer.json()
        assert record["price"] == "1234567.25"
        assert record["due_at"] == "2026-01-15T10:30:00.123Z"
        assert record["owner_id"] == "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"
        assert (record["kind"], record["rank"], record["weight"]) == ("pen", None, 0.5)
        assert record["details"]["list"] == [1, None, {"deep": True}]
        one = await service.get(path_of(THINGS, record["id"]))
        [listed] = await service.find()
        many = await service.ask("POST", f"{THINGS.path}:batch_get", {"ids": [record["id"]]})
        assert one.json() == listed == many.items[0] == record
        assert one.body in (await service.get(THINGS.path, [("tag", f"eq.{service.tag}")])).body
        assert one.body in many.body

    async def test_a_decimal_has_no_exponent(self, service: ServiceUnderTest) -> None:
        """One number has one text, however it was written."""
        record = await service.thing(price="1.5e3")
        assert record["price"] == "1500"
        assert (await service.get(path_of(THINGS, record["id"]))).json() == record

    async def test_the_client_may_name_the_record(self, service: ServiceUnderTest) -> None:
        """The id is kept in its canonical form."""
        given = fresh_id()
        record = await service.thing(id=given.upper())
        assert record["id"] == given

    async def test_a_taken_id_is_a_unique_violation(self, service: ServiceUnderTest) -> None:
        """A `POST` never replaces a record."""
        record = await service.thing()
        answer = await service.write("POST", THINGS.path, {"tag": service.tag, "id": record["id"]})
        assert answer.problem == (409, "UNIQUE_VIOLATION")

    async def test_a_natural_key_may_hold_anything(self, service: ServiceUnderTest) -> None:
        """A `Location` leads back to a key with slashes, colons and percent signs."""
        for name in ("a/b", "a b", "%2F", "\u00fc?#", "a:undelete", "'; --"):
            key = f"{service.tag} {name}"
            made = await service.write("POST", PLACES.path, {"id": key, "title": name})
            assert made.status == 201, made
            assert made.headers["location"] == path_of(PLACES, key)
            assert (await service.get(made.headers["location"])).json() == made.json()

    @pytest.mark.parametrize("key", ["", ".", ".."])
    async def test_a_natural_key_that_no_path_leads_to_is_refused(
        self, service: ServiceUnderTest, key: str
    ) -> None:
        """A client or proxy would normalise its path into another one, so no route accepts it."""
        item = {"id": key, "data": {"id": key, "title": service.tag}}
        operation = {"resource": PLACES.name, **item}
        answers = [
            await service.write("POST", PLACES.path, item["data"]),
            await service.write("POST", f"{PLACES.path}:batch_create", {"items": [item]}),
            await service.write("POST", f"{PLACES.path}:batch_upsert", {"items": [item]}),
        ]
        if service.has("transactions"):
            answers += [await service.transact({"op": op, **operation}) for op in ("create", "upsert")]
        assert [answer.problem for answer in answers] == [(422, "VALIDATION")] * len(answers)

    async def test_what_is_not_there_is_not_found(self, service: ServiceUnderTest) -> None:
        """A record, a route and an id that can't exist answer alike."""
        for target in (path_of(THINGS, fresh_id()), f"{THINGS.path}/nonsense", "/v1/nothing", "/nothing"):
            assert (await service.get(target)).problem == (404, "NOT_FOUND")
        for method in ("PATCH", "DELETE"):
            answer = await service.write(
                method, path_of(THINGS, fresh_id()), {} if method == "PATCH" else b""
            )
            assert answer.problem == (404, "NOT_FOUND")

    async def test_a_patch_changes_what_it_names(self, service: ServiceUnderTest) -> None:
        """Null takes a value away, and documents are merged (RFC 7396)."""
        record = await service.thing(name="pen", rank=3, details={"size": 1, "color": "red", "old": 1})
        answer = await service.write(
            "PATCH", path_of(THINGS, record["id"]), {"rank": None, "details": {"size": 2, "old": None}}
        )
        changed = answer.json()
        assert answer.status == 200
        assert changed["rank"] is None
        assert changed["details"] == {"size": 2, "color": "red"}
        assert (changed["name"], changed["version"]) == ("pen", 2)
        assert answer.headers["etag"] == changed["etag"] != record["etag"]

    async def test_put_creates_and_replaces_under_its_condition(self, service: ServiceUnderTest) -> None:
        """`*` in `If-Match` only replaces, in `If-None-Match` only creates; without them it does either."""
        path, body = path_of(THINGS, fresh_id()), {"tag": service.tag, "name": "first"}
        missing = await service.write("PUT", path, body, if_match="*")
        made = await service.write("PUT", path, body, if_none_match="*")
        again = await service.write("PUT", path, body, if_none_match="*")
        replaced = await service.write("PUT", path, {**body, "name": "second"}, if_match=made.json()["etag"])
        plain = await service.write("PUT", path, {**body, "name": "third"})
        assert (missing.problem, made.status) == ((412, "PRECONDITION_FAILED"), 201)
        assert again.problem == (412, "PRECONDITION_FAILED")
        assert (replaced.status, replaced.json()["name"], plain.json()["version"]) == (200, "second", 3)

    # ── entity tags ──────────────────────────────────────────────────────────────────────────────

    async def test_a_reader_that_has_the_state_gets_no_body(self, service: ServiceUnderTest) -> None:
        """Weak tags, lists and `*` count; the 304 names the state."""
        record = await service.thing()
        path = path_of(THINGS, record["id"])
        for known in (record["etag"], f"W/{record['etag']}", f'"x", {record["etag"]}', "*"):
            answer = await service.get(path, if_none_match=known)
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", record["etag"])
        assert (await service.get(path, if_none_match='"1-0"')).status == 200

    async def test_a_stale_change_is_refused_with_the_current_tag(self, service: ServiceUnderTest) -> None:
        """The refusal tells the caller which state there is now."""
        record = await service.thing()
        path = path_of(THINGS, record["id"])
        current = (await service.write("PATCH", path, {"rank": 1})).json()["etag"]
        for method, body in (("PATCH", {"rank": 2}), ("PUT", {"tag": service.tag}), ("DELETE", b"")):
            answer = await service.write(method, path, body, if_match=record["etag"])
            assert answer.problem == (412, "PRECONDITION_FAILED")
            assert answer.json()["current"] == current

    async def test_a_weakened_tag_is_as_good(self, service: ServiceUnderTest) -> None:
        """Proxies that compress an answer weaken its tag."""
        record = await service.thing()
        path = path_of(THINGS, record["id"])
        changed = await service.write("PATCH", path, {"rank": 1}, if_match=f"W/{record['etag']}")
        assert changed.status == 200
        assert (await service.write("DELETE", path, if_match=f"W/{changed.json()['etag']}")).status == 204

    async def test_a_tag_that_no_record_can_have_matches_none(self, service: ServiceUnderTest) -> None:
        """It is a condition that fails, not a broken request."""
        record = await service.thing()
        for tag in ('"x"', '"0-0"', '"1-0; DROP"', '"99999999999999999999-1"'):
            answer = await service.write("PATCH", path_of(THINGS, record["id"]), {"rank": 1}, if_match=tag)
            assert answer.problem == (412, "PRECONDITION_FAILED"), tag

    async def test_a_tag_never_comes_twice(self, service: ServiceUnderTest) -> None:
        """A record that is deleted and made again has another tag, although its version begins at 1."""
        path, tags = path_of(THINGS, fresh_id()), set[str]()
        for _ in range(3):
            made = await service.write("PUT", path, {"tag": service.tag})
            tags.add(made.headers["etag"])
            assert (await service.write("DELETE", path)).status == 204
        assert len(tags) == 3

    async def test_a_selection_has_a_weak_tag(self, service: ServiceUnderTest) -> None:
        """It is not the whole record, so its bytes are no state of it."""
        record = await service.thing(name="pen")
        [found] = await service.find(select=["id", "name"])
        assert found == {"id": record["id"], "name": "pen", "etag": f"W/{record['etag']}"}

    async def test_a_resource_may_demand_a_condition(self, service: ServiceUnderTest) -> None:
        """A change that names no state is refused with 428, and one that names it is done."""
        made = await service.write("POST", LEDGERS.path, {"balance": 1})
        path = path_of(LEDGERS, made.json()["id"])
        for method, body in (("PATCH", {"balance": 2}), ("DELETE", b""), ("PUT", {"balance": 3})):
            answer = await service.write(method, path, body)
            assert answer.problem == (428, "PRECONDITION_REQUIRED"), method
        changed = await service.write("PATCH", path, {"balance": 2}, if_match=made.headers["etag"])
        assert (changed.status, changed.json()["balance"]) == (200, 2)

    # ── soft deletes ─────────────────────────────────────────────────────────────────────────────

    async def test_a_hidden_record_is_not_there(self, service: ServiceUnderTest) -> None:
        """No route reads or changes it after its soft delete."""
        place = await _place(service)
        path = path_of(PLACES, place["id"])
        assert (await service.write("DELETE", path)).status == 204
        assert (await service.get(path)).problem == (404, "NOT_FOUND")
        assert (await service.write("PATCH", path, {"title": "x"})).problem == (404, "NOT_FOUND")
        assert (await service.write("DELETE", path)).problem == (404, "NOT_FOUND")
        assert (await service.get(PLACES.path, [("title", f"eq.{service.tag}")])).items == []
        batch = await service.ask("POST", f"{PLACES.path}:batch_get", {"ids": [place["id"]]})
        assert batch.items == [None]

    async def test_a_hidden_record_keeps_its_id(self, service: ServiceUnderTest) -> None:
        """Its row is still there, so the id can't be used again."""
        place = await _place(service)
        await service.write("DELETE", path_of(PLACES, place["id"]))
        answer = await service.write("POST", PLACES.path, {"id": place["id"], "title": "again"})
        assert answer.problem == (409, "UNIQUE_VIOLATION")

    async def test_a_hidden_record_comes_back(self, service: ServiceUnderTest) -> None:
        """It has its values, and a new state."""
        place = await _place(service)
        path = path_of(PLACES, place["id"])
        await service.write("DELETE", path)
        back = await service.write("POST", f"{path}:undelete")
        assert (back.status, back.json()["title"]) == (200, service.tag)
        assert back.headers["etag"] == back.json()["etag"] != place["etag"]
        assert (await service.get(path)).json() == back.json()

    async def test_what_is_there_stays_as_it_is(self, service: ServiceUnderTest) -> None:
        """Undeleting a record that isn't deleted changes nothing; one that never was is not found."""
        place = await _place(service)
        back = await service.write("POST", f"{path_of(PLACES, place['id'])}:undelete")
        assert (back.status, back.json()) == (200, place)
        missing = await service.write("POST", f"{path_of(PLACES, service.tag + 'x')}:undelete")
        assert missing.problem == (404, "NOT_FOUND")

    # ── preferences ──────────────────────────────────────────────────────────────────────────────

    async def test_an_answer_may_be_minimal(self, service: ServiceUnderTest) -> None:
        """Status, `Location` and tag say what happened; there is no body."""
        made = await service.write("POST", THINGS.path, {"tag": service.tag}, prefer="return=minimal")
        assert (made.status, made.body) == (201, b"")
        assert "return=minimal" in made.headers["preference-applied"]
        changed = await service.write("PATCH", made.headers["location"], {"rank": 1}, prefer="return=minimal")
        assert (changed.status, changed.body) == (204, b"")
        assert changed.headers["etag"] != made.headers["etag"]
        assert (await service.get(made.headers["location"])).headers["etag"] == changed.headers["etag"]

    async def test_a_dry_run_changes_nothing(self, service: ServiceUnderTest) -> None:
        """It answers as the write would, and leaves neither a record nor the key."""
        service.needs("transactions")
        made = await service.write(
            "POST", THINGS.path, {"tag": service.tag, "name": "dry"}, key=service.tag, prefer="tx=rollback"
        )
        assert (made.status, made.json()["name"]) == (201, "dry")
        assert "tx=rollback" in made.headers["preference-applied"]
        assert await service.find() == []
        real = await service.write("POST", THINGS.path, {"tag": service.tag, "name": "dry"}, key=service.tag)
        assert (real.status, real.headers.get("idempotency-replayed")) == (201, None)

    async def test_an_unknown_preference_is_ignored(self, service: ServiceUnderTest) -> None:
        """`Preference-Applied` doesn't name it."""
        made = await service.write(
            "POST", THINGS.path, {"tag": service.tag}, prefer="respond-async, foo; bar=baz"
        )
        assert made.status == 201
        assert "preference-applied" not in made.headers


async def _place(service: ServiceUnderTest) -> dict[str, Any]:
    answer = await service.write("POST", PLACES.path, {"id": service.tag, "title": service.tag})
    assert answer.status == 201, answer
    return dict(answer.json())
