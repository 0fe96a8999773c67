"""Refusals: problem documents, limits, deadlines and injection attempts."""

# ruff: noqa: S101 - these are tests

import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from hybridkit._header_fields import quote_string
from hybridkit.testing.conformance._resources import PLACES, SLOW, THINGS
from hybridkit.testing.conformance._service import ServiceUnderTest, fresh_id, path_of


@pytest.mark.asyncio
class ProblemsConformance:
    """Tests of refusals, which are all problem documents (RFC 9457)."""

    async def test_a_problem_says_what_it_is_about(self, service: ServiceUnderTest) -> None:
        """It has the path, the code, whether a retry can help, and the request's own id."""
        path = path_of(THINGS, fresh_id())
        answer = await service.get(path, x_request_id=service.tag)
        problem = answer.json()
        assert answer.headers["x-request-id"] == problem["request_id"] == service.tag
        assert (problem["instance"], problem["code"], problem["retryable"]) == (path, "NOT_FOUND", False)
        assert problem["title"]

    @pytest.mark.parametrize(
        ("sent", "known_as"),
        [("auth0|17", "auth0|17"), ("a@b.c:/+=", "a@b.c:/+="), ("%C3%9C%20100%25", "\u00dc 100%")],
    )
    async def test_an_id_is_any_text_of_one_line(
        self, service: ServiceUnderTest, sent: str, known_as: str
    ) -> None:
        """It is percent-encoded in a header where it is not visible ASCII."""
        answer = await service.get(path_of(THINGS, fresh_id()), x_request_id=sent, x_user_id=sent)
        assert (answer.headers["x-request-id"], answer.json()["request_id"]) == (sent, known_as)

    @pytest.mark.parametrize("sent", ["a b", "%FF", "%0A", "%E2%80%A8", "a" * 256])
    async def test_a_user_that_can_not_be_read_is_refused(self, service: ServiceUnderTest, sent: str) -> None:
        """A service that ignored it would do the work in another user's name; a bad request id is replaced."""
        answer = await service.get(path_of(THINGS, fresh_id()), x_user_id=sent)
        assert answer.problem == (400, "INVALID_HEADER")
        answer = await service.get(path_of(THINGS, fresh_id()), x_request_id=sent)
        assert answer.status == 404
        assert len(answer.headers["x-request-id"]) == 36

    async def test_a_bad_body_is_told_with_pointers_and_without_values(
        self, service: ServiceUnderTest
    ) -> None:
        """All problems come at once, and none shows a value, which may be a secret."""
        secret = "s3cret-value"  # noqa: S105 - a value that no answer may tell
        body = {"tag": 1, "kind": secret, "price": secret, "odd": secret, "details": secret}
        answer = await service.write("POST", THINGS.path, body)
        assert answer.problem == (422, "VALIDATION")
        assert sorted(answer.pointers) == ["/details", "/kind", "/odd", "/price", "/tag"]
        assert secret.encode() not in answer.body

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"tag": NaN}', b"[" * 5000]
    )
    async def test_what_is_no_object_is_refused(self, service: ServiceUnderTest, body: bytes) -> None:
        """Every route that reads a body refuses it, also where it is nested too deeply or not UTF-8."""
        for method, target in (("POST", THINGS.path), ("PATCH", path_of(THINGS, fresh_id()))):
            answer = await service.write(method, target, body, content_type="application/json")
            assert answer.problem == (422, "VALIDATION"), method
        for target in (f"{THINGS.path}:query", f"{THINGS.path}:aggregate", f"{THINGS.path}:batch_get"):
            answer = await service.ask("POST", target, body, headers={"content-type": "application/json"})
            assert answer.status in (400, 422), target
            assert answer.problem[1] in ("VALIDATION", "INVALID_QUERY"), target

    async def test_a_unique_value_is_told_by_its_field(self, service: ServiceUnderTest) -> None:
        """The field is named, the value is not; null may be there many times."""
        await service.thing(code=service.tag)
        answer = await service.write("POST", THINGS.path, {"tag": service.tag, "code": service.tag})
        assert answer.problem == (409, "UNIQUE_VIOLATION")
        assert answer.json()["fields"] == ["code"]
        assert service.tag.encode() not in answer.body
        await service.thing()
        await service.thing()  # many may be without a value

    async def test_a_value_that_a_change_takes_is_unique_too(self, service: ServiceUnderTest) -> None:
        """An update is refused as a create is."""
        await service.thing(code=service.tag)
        other = await service.thing()
        answer = await service.write("PATCH", path_of(THINGS, other["id"]), {"code": service.tag})
        assert answer.problem == (409, "UNIQUE_VIOLATION")

    async def test_a_value_that_is_taken_is_pointed_to(self, service: ServiceUnderTest) -> None:
        """Whichever way the write comes, it says where in the request the value stands."""
        first, other = await service.thing(code=service.tag), await service.thing()
        values = {"tag": service.tag, "code": service.tag}
        told = {
            "/code": [
                await service.write("POST", THINGS.path, values),
                await service.write("PATCH", path_of(THINGS, other["id"]), {"code": service.tag}),
                await service.write("PUT", path_of(THINGS, other["id"]), values),
            ],
            "/id": [await service.write("POST", THINGS.path, {"id": first["id"], "tag": service.tag})],
        }
        if service.has("transactions"):
            given = {"id": fresh_id(), "data": values}
            last = {"op": "create", "resource": THINGS.name, **given}
            before = {**last, "id": fresh_id(), "data": {"tag": service.tag}}
            told["/operations/1/data/code"] = [await service.transact(before, last)]
            told["/operations/0/id"] = [await service.transact({**before, "id": first["id"]})]
            told["/items/0/data/code"] = [
                await service.write("POST", f"{THINGS.path}:batch_create", {"items": [given]}),
                await service.write("POST", f"{THINGS.path}:batch_upsert", {"items": [given]}),
            ]
        for at, answers in told.items():
            for answer in answers:
                assert answer.problem == (409, "UNIQUE_VIOLATION"), at
                errors = answer.json()["errors"]
                assert [(error["pointer"], error["code"]) for error in errors] == [(at, "unique")]

    async def test_a_reference_that_leads_nowhere_is_pointed_to(self, service: ServiceUnderTest) -> None:
        """Whichever way the write comes, the pointer leads to the value."""
        service.needs("foreign_keys")
        made, values = await service.thing(), {"tag": service.tag, "place_id": service.tag}
        operation = {"op": "create", "resource": THINGS.name, "id": fresh_id(), "data": values}
        told = {
            "/place_id": [
                await service.write("POST", THINGS.path, values),
                await service.write("PUT", path_of(THINGS, made["id"]), values),
            ],
            "/operations/0/data/place_id": [await service.transact(operation)],
        }
        for at, answers in told.items():
            for answer in answers:
                assert answer.problem == (409, "FOREIGN_KEY_VIOLATION"), at
                errors = answer.json()["errors"]
                assert [(error["pointer"], error["code"]) for error in errors] == [(at, "foreign_key")]

    async def test_a_reference_has_to_lead_somewhere(self, service: ServiceUnderTest) -> None:
        """The same write is done once the place is there."""
        service.needs("foreign_keys")
        answer = await service.write("POST", THINGS.path, {"tag": service.tag, "place_id": service.tag})
        assert answer.problem == (409, "FOREIGN_KEY_VIOLATION")
        await service.write("POST", PLACES.path, {"id": service.tag, "title": "there"})
        await service.thing(place_id=service.tag)

    async def test_a_required_value_can_t_be_taken_away(self, service: ServiceUnderTest) -> None:
        """Null in a merge patch removes a value, which this field must have."""
        record = await service.thing(quantity=1)
        answer = await service.write("PATCH", path_of(THINGS, record["id"]), {"quantity": None})
        assert answer.problem == (422, "VALIDATION")

    async def test_a_route_takes_its_methods_only(self, service: ServiceUnderTest) -> None:
        """`Allow` names the ones that it takes."""
        for method, target in (
            ("DELETE", THINGS.path),
            ("PATCH", THINGS.path),
            ("POST", path_of(THINGS, fresh_id())),
            ("GET", "/v1:transact"),
        ):
            answer = await service.write(method, target)
            assert answer.problem == (405, "METHOD_NOT_ALLOWED"), (method, target)
            assert answer.headers["allow"]

    async def test_another_kind_of_body_is_refused(self, service: ServiceUnderTest) -> None:
        """A form is not taken for JSON."""
        answer = await service.write(
            "POST", THINGS.path, b"tag=x", content_type="application/x-www-form-urlencoded"
        )
        assert answer.problem == (415, "UNSUPPORTED_MEDIA_TYPE")

    async def test_a_body_has_at_most_a_mebibyte(self, service: ServiceUnderTest) -> None:
        """It is refused before it is parsed, whatever route it is for."""
        body = b'{"tag":"' + b"x" * 1024 * 1024 + b'"}'
        for target in (THINGS.path, f"{THINGS.path}:query", "/v1:transact"):
            answer = await service.write("POST", target, body)
            assert answer.problem == (413, "PAYLOAD_TOO_LARGE"), target

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────

    async def test_nothing_is_done_after_the_deadline(self, service: ServiceUnderTest) -> None:
        """A caller that computes what is left sends less than nothing when its time is over."""
        for left in ("0", "-1", "-0.2", "-0"):
            made = await service.write("POST", THINGS.path, {"tag": service.tag}, x_request_timeout=left)
            assert made.problem == (504, "DEADLINE_PASSED"), left
            assert made.json()["retryable"] is True
        assert await service.find() == []
        for target in (THINGS.path, path_of(THINGS, fresh_id())):
            answer = await service.get(target, x_request_timeout="0.000")
            assert answer.problem == (504, "DEADLINE_PASSED"), target

    async def test_a_deadline_reaches_the_database(self, service: ServiceUnderTest) -> None:
        """What it does for nobody any more is stopped there."""
        service.needs("slow_call")
        assert (await service.ask("POST", SLOW.path, {"seconds": 0.0})).json() == {"seconds": 0.0}
        began = time.monotonic()
        headers = {"x-request-timeout": "0.3"}
        answer = await service.ask("POST", SLOW.path, {"seconds": 30.0}, headers=headers)
        assert answer.problem in {(504, "DEADLINE_PASSED"), (504, "DEADLINE_EXCEEDED")}
        assert time.monotonic() - began < 10

    @pytest.mark.parametrize("value", ["soon", "5s", "nan", "1e9", "1,2"])
    async def test_a_deadline_that_can_t_be_read_is_refused(
        self, service: ServiceUnderTest, value: str
    ) -> None:
        """Ignored, it would be a deadline that doesn't hold."""
        made = await service.write("POST", THINGS.path, {"tag": service.tag}, x_request_timeout=value)
        assert made.problem == (400, "INVALID_HEADER")
        assert made.pointers == ["/header/x-request-timeout"]
        assert await service.find() == []

    # ── attempts to break in ─────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize(
        "text",
        [
            "'; DROP TABLE conformance_things; --",
            "' OR '1'='1",
            "\\'; SELECT pg_sleep(5); --",
            '{"$ne": null}',
            "$where",
            "$$; DROP",
            "%27%20OR%201=1",
            "\u2019 OR 1=1",
            "a\r\nx-evil: 1",
            "(SELECT 1)",
            "*/**/OR/**/1=1",
        ],
    )
    async def test_a_value_is_a_value(self, service: ServiceUnderTest, text: str) -> None:
        """Text that looks like SQL, an operator or a header is stored, found and matched as text."""
        record = await service.thing(name=text, details={"size": text})
        await service.thing(name="other")
        assert record["name"] == text
        for tree in ({"eq": ["name", text]}, {"in": ["name", [text]]}, {"eq": ["details.size", text]}):
            assert await service.names(tree) == [text]
        assert await service.names_by_url(("name", f"eq.{text}")) == [text]
        answer = await service.transact(
            {
                "op": "update",
                "resource": THINGS.name,
                "id": record["id"],
                "data": {"name": "x"},
                "require": {"eq": ["name", text]},
            }
        )
        assert answer.status == 200

    async def test_a_document_may_look_like_an_operator(self, service: ServiceUnderTest) -> None:
        """Members with dollars and dots are data, also where they are merged."""
        odd: dict[str, Any] = {"$set": {"rank": 9}, "a.b": 1, "$where": "sleep(1)", "__proto__": {"x": 1}}
        record = await service.thing(details=odd)
        assert record["details"] == odd
        changed = await service.write(
            "PATCH", path_of(THINGS, record["id"]), {"details": {"$inc": {"version": 5}, "a.b": 2}}
        )
        assert changed.json()["details"] == {**odd, "$inc": {"version": 5}, "a.b": 2}
        assert (changed.json()["rank"], changed.json()["version"]) == (None, 2)

    async def test_names_are_declared_names(self, service: ServiceUnderTest) -> None:
        """No other name reaches the database in a filter, an order, a selection or an increment."""
        for name in (
            "rank; DROP TABLE x",
            "rank) OR (1=1",
            "$where",
            "details.$gt",
            "details",
            "rank.x",
            "incarnation",
            "_hk",
            "tag'",
        ):
            body = {"where": {"eq": [name, 1]}}
            assert (await service.ask("POST", f"{THINGS.path}:query", body)).problem == (400, "INVALID_QUERY")
            for member in ({"order": [[name, "asc"]]}, {"select": [f"{name}x"]}):
                answer = await service.ask("POST", f"{THINGS.path}:query", member)
                assert answer.problem == (400, "INVALID_QUERY"), (name, member)
            answer = await service.transact(
                {"op": "update", "resource": THINGS.name, "id": fresh_id(), "increment": {f"{name} ": 1}}
            )
            assert answer.problem == (422, "VALIDATION"), name

    async def test_an_id_is_an_id(self, service: ServiceUnderTest) -> None:
        """One that no record can have is not found, and nothing else happens."""
        for text in ("' OR 1=1", '{"$ne":null}', "../../etc/passwd", "%00", "1"):
            answer = await service.get(f"{THINGS.path}/{quote(text, safe='')}")
            assert answer.problem == (404, "NOT_FOUND"), text
            place = await service.get(f"{PLACES.path}/{quote(text, safe='')}")
            assert place.problem == (404, "NOT_FOUND"), text

    async def test_null_characters_are_refused_or_kept(self, service: ServiceUnderTest) -> None:
        """Not every database can keep them; none may stumble over them."""
        answer = await service.write("POST", THINGS.path, {"tag": service.tag, "name": "a\0b"})
        assert answer.status == 201 or answer.problem == (422, "VALIDATION")
        if answer.status == 201:
            assert answer.json()["name"] == "a\0b"
        for query in ("name=eq.%00", "details.size=eq.%00", "name=like.*%00"):
            found = await service.ask("GET", f"{THINGS.path}?{query}")
            assert found.status == 200 or found.problem == (400, "INVALID_QUERY"), query
        document = await service.write("POST", THINGS.path, {"tag": service.tag, "details": {"a": "\0"}})
        assert document.status == 201 or document.problem == (422, "VALIDATION")

    async def test_numbers_out_of_range_are_refused_or_kept(self, service: ServiceUnderTest) -> None:
        """Each database has its ranges; none may break at their ends."""
        for values in (
            {"rank": 2**31},
            {"rank": 2**70},
            {"quantity": -(2**63) - 1},
            {"price": "1e400"},
            {"price": "NaN"},
        ):
            body = json.dumps({"tag": service.tag, **values}).encode()
            answer = await service.write("POST", THINGS.path, body)
            assert answer.status == 201 or answer.problem == (422, "VALIDATION"), values
            if answer.status == 201:
                await service.write("DELETE", answer.headers["location"])
        for tree in ({"eq": ["rank", 2**70]}, {"gt": ["price", "1e400"]}, {"lt": ["rank", -(2**63) - 1]}):
            found = await service.ask("POST", f"{THINGS.path}:query", json.dumps({"where": tree}).encode())
            assert found.status == 200 or found.problem == (400, "INVALID_QUERY"), tree

    @pytest.mark.parametrize("name", ["Bad Name", "x' OR 1=1", "a" * 64, "\u00fc", "9lives", "$ne"])
    async def test_a_caller_has_a_name(self, service: ServiceUnderTest, name: str) -> None:
        """It is in snake_case and has at most 63 characters, as it becomes a part of keys."""
        answer = await service.write("POST", THINGS.path, {"tag": service.tag}, x_service_name=name)
        assert answer.problem == (422, "VALIDATION")

    async def test_a_key_is_only_a_key(self, service: ServiceUnderTest) -> None:
        """Text that looks like SQL or an operator is stored as a key."""
        for key in ("'; DROP TABLE hk_keys; --", '{"$ne": null}', "a b", "$where", "a.b.c", "\\"):
            quoted = quote_string(f"{service.tag} {key}")
            made = await service.write("POST", THINGS.path, {"tag": service.tag}, idempotency_key=quoted)
            assert made.status == 201, key
