"""Records over HTTP: what is written is what is read, in the same bytes, under the condition that was asked for."""

import re
from typing import Any

import pytest


async def test_a_created_record_has_a_location_and_an_etag(service: Any) -> None:
    """The location leads to the same record as the body."""
    answer = await service.send("POST", "/v1/items", {"name": "pen"})
    record = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/items/{record['id']}"
    assert answer.headers["etag"] == record["etag"]
    assert record["version"] == 1
    assert (await service.get(answer.headers["location"])).json() == record


async def test_the_client_names_the_record(service: Any) -> None:
    """An id in upper case is the same UUID."""
    id_ = "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"
    record = await service.create("pen", id=id_.upper())
    assert record["id"] == id_


async def test_defaults_of_the_record_hold_for_what_a_create_does_not_name(service: Any) -> None:
    """Fields that only the record declares get the record's defaults."""
    record = await service.create("pen")
    assert (record["is_active"], record["quantity"], record["price"]) == (True, 0, None)


async def test_scalars_are_canonical_on_every_path(service: Any) -> None:
    """Decimals are strings, timestamps are UTC with milliseconds at most, nested ones as they came."""
    record = await service.create(
        "pen", price=1.5, due_at="2026-01-15T11:30:00.123987+01:00", details={"at": "2026-01-01", "n": 1.5}
    )
    [listed] = (await service.get("/v1/items")).json()["items"]
    read = (await service.get(f"/v1/items/{record['id']}")).json()
    assert record == read == listed
    assert record["price"] == "1.50"
    assert record["due_at"] == "2026-01-15T10:30:00.123Z"
    assert record["details"] == {"at": "2026-01-01", "n": 1.5}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", record["created_at"])


async def test_whole_seconds_have_no_fraction(service: Any) -> None:
    """A timestamp is printed in the shortest form."""
    record = await service.create("pen", due_at="2026-01-15T10:30:00Z")
    assert record["due_at"] == "2026-01-15T10:30:00Z"


async def test_a_missing_record_is_a_problem(service: Any) -> None:
    """An unknown id and one that is no UUID are both 404."""
    for path in ("/v1/items/1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc", "/v1/items/nonsense", "/v1/items/"):
        answer = await service.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "NOT_FOUND"


async def test_natural_keys_may_hold_a_slash(service: Any) -> None:
    """The slash is escaped in the location and in paths."""
    answer = await service.send("POST", "/v1/owners", {"id": "a/b", "title": "A"})
    assert answer.headers["location"] == "/v1/owners/a%2Fb"
    assert (await service.get("/v1/owners/a%2Fb")).json() == answer.json()


async def test_a_reader_that_has_the_state_gets_no_body(service: Any) -> None:
    """Any of the given tags may match, weak or strong; then the answer is 304."""
    record = await service.create("pen")
    path = f"/v1/items/{record['id']}"
    for known in (record["etag"], f"W/{record['etag']}", f'"x", {record["etag"]}', "*"):
        answer = await service.get(path, if_none_match=known)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", record["etag"])
    assert (await service.get(path, if_none_match='"1-0"')).status_code == 200


async def test_a_patch_changes_what_it_names(service: Any) -> None:
    """All other fields stay, and version, ETag and `updated_at` move on."""
    record = await service.create("pen", price="2", rank=3)
    answer = await service.send(
        "PATCH", f"/v1/items/{record['id']}", {"rank": None, "is_active": False}, if_match=record["etag"]
    )
    changed = answer.json()
    assert answer.status_code == 200
    assert answer.headers["etag"] == changed["etag"] != record["etag"]
    assert changed["version"] == 2
    assert changed["updated_at"] >= record["updated_at"]
    assert {**record, "rank": None, "is_active": False} == {
        **changed,
        **{name: record[name] for name in ("version", "updated_at", "etag")},
    }


async def test_a_patch_of_a_document_merges(service: Any) -> None:
    """By RFC 7396 nested members are set, and null removes them."""
    record = await service.create("pen", details={"size": 1, "color": "red", "box": {"a": 1, "b": 2}})
    answer = await service.send(
        "PATCH", f"/v1/items/{record['id']}", {"details": {"color": None, "box": {"b": 3}}}
    )
    assert answer.json()["details"] == {"size": 1, "box": {"a": 1, "b": 3}}
    answer = await service.send("PATCH", f"/v1/items/{record['id']}", {"details": None})
    assert answer.json()["details"] is None
    [row] = await service.sql("SELECT details IS NULL AS is_null FROM items")
    assert row["is_null"]
    answer = await service.send("PATCH", f"/v1/items/{record['id']}", {"details": {"size": 2}})
    assert answer.json()["details"] == {"size": 2}


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
async def test_a_stale_write_is_refused_and_told_the_current_state(service: Any, method: str) -> None:
    """Every conditional method answers 412 with the current ETag."""
    record = await service.create("pen")
    path = f"/v1/items/{record['id']}"
    current = (await service.send("PATCH", path, {"rank": 1})).json()["etag"]
    for stale in (record["etag"], '"nonsense"', '"1-0"', f'"nonsense", {record["etag"]}'):
        answer = await service.send(
            method, path, None if method == "DELETE" else {"name": "ink"}, if_match=stale
        )
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["current"]) == (
            412,
            "PRECONDITION_FAILED",
            current,
        )


async def test_a_weakened_tag_still_matches(service: Any) -> None:
    """Proxies that compress an answer weaken its tag."""
    record = await service.create("pen")
    answer = await service.send(
        "PATCH", f"/v1/items/{record['id']}", {"rank": 1}, if_match=f"W/{record['etag']}"
    )
    assert answer.status_code == 200


async def test_put_creates_and_replaces(service: Any) -> None:
    """A replace resets fields that it does not name, and both conditions of HTTP work."""
    path = "/v1/items/1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"
    created = await service.send("PUT", path, {"name": "pen", "rank": 1})
    replaced = await service.send("PUT", path, {"name": "ink"})
    assert (created.status_code, replaced.status_code) == (201, 200)
    assert created.headers["location"] == path
    assert (replaced.json()["name"], replaced.json()["rank"], replaced.json()["version"]) == ("ink", None, 2)
    only_new = await service.send("PUT", path, {"name": "box"}, if_none_match="*")
    assert (only_new.status_code, only_new.json()["current"]) == (412, replaced.json()["etag"])
    matched = await service.send("PUT", path, {"name": "box"}, if_match=replaced.json()["etag"])
    assert (matched.status_code, matched.json()["name"]) == (200, "box")
    other = "/v1/items/1f1e54a2-f5d4-612b-8824-ddcdfebdd6fd"
    for present in ("*", '"1-1"'):
        missing = await service.send("PUT", other, {"name": "new"}, if_match=present)
        assert (missing.status_code, missing.json()["code"]) == (412, "PRECONDITION_FAILED")
    assert (await service.send("PUT", other, {"name": "new"}, if_none_match="*")).status_code == 201


async def test_the_body_of_a_put_names_no_other_record(service: Any) -> None:
    """An id in the body that differs from the path is a mistake."""
    answer = await service.send("PUT", "/v1/owners/a", {"id": "b", "title": "A"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/id")


async def test_a_deleted_record_is_gone_and_its_etag_never_comes_back(service: Any) -> None:
    """A record created again with the same id and version has another ETag."""
    record = await service.create("pen")
    path = f"/v1/items/{record['id']}"
    answer = await service.send("DELETE", path, if_match=record["etag"])
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await service.get(path)).status_code == 404
    assert (await service.send("DELETE", path)).status_code == 404
    again = await service.create("pen", id=record["id"])
    assert again["version"] == record["version"]
    assert again["etag"] != record["etag"]


async def test_a_change_of_a_missing_record_is_404(service: Any) -> None:
    """So is a merge into a document of it."""
    path = "/v1/items/1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"
    for body in ({"rank": 1}, {"details": {"size": 1}}):
        assert (await service.send("PATCH", path, body)).status_code == 404


async def test_constraints_become_problems_without_values(service: Any) -> None:
    """Each violated constraint has its status and code, and no value is quoted."""
    await service.create("pen")
    taken = await service.send("POST", "/v1/items", {"name": "pen"})
    orphan = await service.send("POST", "/v1/items", {"name": "ink", "owner_id": "nobody"})
    negative = await service.send("POST", "/v1/items", {"name": "box", "quantity": -1})
    too_big = await service.send("POST", "/v1/items", {"name": "cup", "quantity": 2**40})
    nameless = await service.send("PATCH", f"/v1/items/{(await service.create('x'))['id']}", {"name": None})
    nul = await service.send("POST", "/v1/items", {"name": "a\0b"})
    found = [
        (answer.status_code, answer.json()["code"])
        for answer in (taken, orphan, negative, too_big, nameless, nul)
    ]
    assert found == [(409, "UNIQUE_VIOLATION"), (409, "FOREIGN_KEY_VIOLATION"), *[(422, "VALIDATION")] * 4]
    assert taken.json()["fields"] == ["name"]
    assert "nobody" not in orphan.text


async def test_every_problem_of_a_body_is_pointed_at_and_no_value_told(service: Any) -> None:
    """One answer points at each wrong field of the body."""
    secret = "a value that nobody may see"
    answer = await service.send(
        "POST", "/v1/items", {"price": secret, "rank": secret, secret[:7]: secret, "version": 7}
    )
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "VALIDATION")
    assert {error["pointer"] for error in problem["errors"]} == {
        "/name",
        "/price",
        "/rank",
        "/a value",
        "/version",
    }
    assert secret not in answer.text


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000], ids=["cut", "array", "text", "binary", "deep"]
)
async def test_a_body_that_is_no_object_is_refused(service: Any, body: bytes) -> None:
    """Broken JSON and other JSON values are 422 on every route with a body."""
    for method, path in (
        ("POST", "/v1/items"),
        ("POST", "/v1/items:query"),
        ("PATCH", "/v1/items/1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"),
        ("POST", "/v1:transact"),
    ):
        answer = await service.http.request(method, path, content=body, headers={"idempotency-key": "k"})
        assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION")


async def test_a_body_is_not_read_past_its_limit(service: Any) -> None:
    """A body that is too large is 413, whether its length is announced or not."""

    async def endless() -> Any:
        for _ in range(20):
            yield b" " * 100_000

    for content in (b" " * 1_100_000, endless()):
        answer = await service.http.post("/v1/items", content=content, headers={"idempotency-key": "k"})
        assert (answer.status_code, answer.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_body_nested_beyond_reason_is_refused(service: Any) -> None:
    """Five hundred levels of arrays are no failure of the server."""
    body = b'{"name": "x", "details": {"a": ' + b"[" * 500 + b"]" * 500 + b"}}"
    answer = await service.http.post("/v1/items", content=body, headers={"idempotency-key": "k"})
    assert answer.status_code == 422


async def test_unknown_routes_and_methods_are_problems(service: Any) -> None:
    """They are answered as `application/problem+json` like every other error."""
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "NOT_FOUND"),
        ("GET", "/", 404, "NOT_FOUND"),
        ("PUT", "/v1/items", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v1/items/1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc", 405, "METHOD_NOT_ALLOWED"),
    ):
        answer = await service.http.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "headers",
    [
        {"if_none_match": '"1-1"'},
        {"if_none_match": "*", "if_match": "*"},
        {"x_service_name": "Not A Name"},
    ],
)
async def test_a_header_that_makes_no_sense_is_refused(service: Any, headers: dict[str, str]) -> None:
    """Contradictory or malformed conditions are 422."""
    answer = await service.send("PUT", "/v1/owners/a", {"id": "a", "title": "A"}, **headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION")


async def test_a_change_only_of_what_is_absent_is_a_contradiction(service: Any) -> None:
    """`If-None-Match: *` on PATCH or DELETE can never hold."""
    path = f"/v1/items/{(await service.create('pen'))['id']}"
    assert (await service.send("PATCH", path, {}, if_none_match="*")).status_code == 422
    assert (await service.send("DELETE", path, if_none_match="*")).status_code == 422


async def test_an_empty_patch_is_a_change(service: Any) -> None:
    """It names no field, and the version grows all the same."""
    record = await service.create("pen")
    assert (await service.send("PATCH", f"/v1/items/{record['id']}", {})).json()["version"] == 2


async def test_the_request_id_of_the_caller_is_in_answer_and_problem(service: Any) -> None:
    """The header and the body of an error have it."""
    answer = await service.get("/v1/nothing", x_request_id="the-caller-s-id")
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "the-caller-s-id"


async def test_probes_and_metrics_answer(service: Any) -> None:
    """Readiness names the database, and metrics count idempotency."""
    await service.create("pen")
    assert (await service.get("/health")).status_code == 200
    ready = await service.get("/ready")
    assert (ready.status_code, ready.json()["dependencies"]["database"]["status"]) == (200, "up")
    assert "hybridkit_idempotency_outcomes_total" in (await service.get("/metrics")).text


async def test_a_document_with_a_number_that_json_here_cannot_hold_is_refused(service: Any) -> None:
    """An integer beyond 64 bits in a document is 422."""
    body = b'{"name":"b","details":{"size":' + b"9" * 30 + b"}}"
    answer = await service.http.post("/v1/items", content=body, headers={"idempotency-key": "beyond"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"].endswith("/details/size")
