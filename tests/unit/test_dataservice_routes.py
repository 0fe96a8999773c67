"""What HTTP says around the records: paths, methods, limits, preferences, conditions, who may do what."""

from typing import Any

import pytest

from hybridkit.dataservice import Grant
from hybridkit.dataservice._http._transact_route import TransactRoute
from hybridkit.dataservice._store._operations import Outcome, Result
from hybridkit.errors import DeclarationError
from tests.helpers.spans import recording

MISSING = "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"


def code_of(answer: Any) -> tuple[int, str]:
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == answer.status_code
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["instance"] == answer.request.url.path
    return answer.status_code, problem["code"]


# ── paths ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v1/nothing/1", "/v1/notes:nothing", "/v2/notes", f"/v1/notes/{MISSING}/more"]
)
async def test_what_is_not_there_is_a_problem(routes: Any, path: str) -> None:
    """Unknown resources, calls, versions and deeper paths are answered in the contract's form."""
    assert code_of(await routes.send("GET", path)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/notes", {"GET", "HEAD", "POST", "QUERY", "OPTIONS"}),
        ("GET", "/v1/notes:query", {"POST", "OPTIONS"}),
        ("POST", f"/v1/notes/{MISSING}", {"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"}),
        ("GET", f"/v1/notes/{MISSING}:undelete", {"POST", "OPTIONS"}),
        ("GET", "/v1:transact", {"POST", "OPTIONS"}),
        ("POST", "/v1/tags/red:undelete", {"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    routes: Any, method: str, path: str, allowed: set[str]
) -> None:
    """`Allow` has them, also where an id looks like a call."""
    answer = await routes.send(method, path)
    assert code_of(answer) == (405, "METHOD_NOT_ALLOWED")
    assert set(answer.headers["allow"].split(", ")) == allowed


async def test_a_natural_key_may_have_a_slash_and_a_colon(routes: Any) -> None:
    """The `Location` of its record leads back to it."""
    for tag in ("a/b", "a:undelete"):
        answer = await routes.send("POST", "/v1/tags", {"id": tag, "color": "red"})
        read = await routes.send("GET", answer.headers["location"])
        assert read.json()["id"] == tag


async def test_routes_of_the_application_work_beside_the_contract(routes: Any) -> None:
    """They may be under its paths, and have methods that it doesn't have there."""

    async def history(note_id: str) -> list[str]:
        return [note_id]

    routes.app.add_api_route("/v1/notes/{note_id}/history", history, methods=["GET"])

    async def copy(note_id: str) -> str:
        return note_id

    routes.app.add_api_route("/v1/notes/{note_id}", copy, methods=["POST"])

    assert (await routes.send("GET", "/v1/notes/7/history")).json() == ["7"]
    assert (await routes.send("POST", "/v1/notes/7")).json() == "7"
    assert (await routes.send("GET", "/v1/notes/7")).status_code == 404
    methods = set(routes.app.openapi()["paths"]["/v1/notes/{id}"])
    assert methods == {"get", "put", "patch", "delete"}
    assert set(routes.app.openapi()["paths"]["/v1/notes/{note_id}"]) == {"post"}


async def test_the_routes_work_under_a_prefix(routes: Any) -> None:
    """A proxy's prefix, which ASGI has in `root_path`, is no part of the path."""
    record = await routes.create()
    scope: dict[str, Any] = {"type": "http", "path": f"/data/v1/notes/{record['id']}", "root_path": "/data"}
    match, child = routes.app.router.routes[0].matches({**scope, "method": "GET"})
    assert (match.name, child["path_params"]["id"]) == ("FULL", record["id"])
    assert routes.app.router.routes[0].matches({"type": "websocket", "path": "/v1/notes"})[0].name == "NONE"
    assert "paths" in repr(routes.app.router.routes[0])


async def test_a_span_is_named_by_the_path(routes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract is one route of the application, and many of its own."""
    with recording(monkeypatch) as exporter:
        await routes.send("GET", f"/v1/notes/{MISSING}")
    (span,) = exporter.get_finished_spans()
    assert (span.name, (span.attributes or {})["http.route"]) == ("GET /v1/notes/{id}", "/v1/notes/{id}")


def test_a_path_answers_a_method_once(routes: Any) -> None:
    """A second endpoint would never be reached, so it is refused."""
    contract = routes.app.router.routes[0]
    with pytest.raises(DeclarationError, match="POST /v1:transact is declared twice"):
        TransactRoute({}).add_to(contract)
    endpoints = [endpoint for item in contract.path_items.values() for endpoint in item.endpoints.values()]
    owners = {repr(getattr(endpoint.handler, "__self__", None)) for endpoint in endpoints}
    assert {"RecordRoutes(Resource('notes', record=Note))", "CallRoute(/v1/notes:praise)"} <= owners


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


WRITES: list[tuple[str, str, Any]] = [
    ("POST", "/v1/notes", {"title": "a"}),
    ("PUT", f"/v1/notes/{MISSING}", {"title": "a"}),
    ("PATCH", f"/v1/notes/{MISSING}", {"title": "a"}),
    ("DELETE", f"/v1/notes/{MISSING}", None),
    ("POST", f"/v1/notes/{MISSING}:undelete", None),
    ("POST", "/v1/notes:batch_create", {"items": [{"data": {"title": "a"}}]}),
    ("POST", "/v1/notes:praise", {"title": "a"}),
    ("POST", "/v1:transact", {"operations": []}),
]
READS: list[tuple[str, str, Any]] = [
    ("GET", "/v1/notes", None),
    ("GET", f"/v1/notes/{MISSING}", None),
    ("QUERY", "/v1/notes", {}),
    ("POST", "/v1/notes:query", {}),
    ("POST", "/v1/notes:aggregate", {"functions": {"n": ["count"]}}),
    ("POST", "/v1/notes:batch_get", {"ids": []}),
    ("POST", "/v1/notes:count_letters", {"title": "a"}),
]


@pytest.mark.parametrize(("method", "path", "body"), [*WRITES, *READS])
async def test_nothing_is_done_for_a_caller_that_has_gone(
    routes: Any, method: str, path: str, body: object
) -> None:
    """A deadline of 0 ends the request before the store is touched."""
    routes.app.state.store = None  # whatever touched it would raise
    answer = await routes.send(method, path, body, x_request_timeout="0")
    assert code_of(answer) == (504, "DEADLINE_PASSED")


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
async def test_every_write_needs_a_key(routes: Any, method: str, path: str, body: object) -> None:
    """Without one a lost response would leave the caller with no safe retry."""
    answer = await routes.http.request(method, path, json=body)
    assert code_of(answer) == (400, "IDEMPOTENCY_KEY_REQUIRED")


async def test_a_long_query_belongs_into_a_body(routes: Any) -> None:
    """A URL of more than 8 KiB is refused with 414."""
    answer = await routes.send("GET", f"/v1/notes?title=eq.{'a' * 8192}")
    assert code_of(answer) == (414, "URI_TOO_LONG")


@pytest.mark.parametrize("letter", ["a", "%C3%BC"])
async def test_a_url_is_measured_in_bytes_with_its_question_mark(routes: Any, letter: str) -> None:
    """8,192 bytes pass and 8,193 don't, however they are encoded."""
    for length, status in ((8192, 200), (8193, 414)):
        url = "/v1/notes?title=eq."
        url += letter * ((length - len(url)) // len(letter))
        url += "a" * (length - len(url))
        assert (await routes.send("GET", url)).status_code == status, length
    path = f"/v1/tags/{letter * (8200 // len(letter))}"
    assert code_of(await routes.send("GET", path)) == (414, "URI_TOO_LONG")


@pytest.mark.parametrize("encoding", ["gzip", "br, identity"])
async def test_a_compressed_body_is_refused(routes: Any, encoding: str) -> None:
    """Its size is unknown before it is unpacked."""
    answer = await routes.send("POST", "/v1/notes", {"title": "a"}, content_encoding=encoding)
    assert code_of(answer) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 201),
        ("application/json; charset=utf-8", 201),
        ('Application/JSON;Charset="UTF-8"', 201),
        ("application/json; charset=us-ascii; profile=x", 201),
        ("", 201),
        ("application/json; charset=iso-8859-1", 415),
        ("application/merge-patch+json", 415),
        ("application/json-patch+json", 415),
        ("application/vnd.api+json", 415),
        ("application/problem+json", 415),
        ("application/ld+json", 415),
        ("application/geo+json", 415),
        ("application/json-seq", 415),
        ("application/x-ndjson", 415),
        ("json", 415),
        ('application/json; charset="utf-8', 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_a_body_is_json_by_its_name(routes: Any, media_type: str, status: int) -> None:
    """Only `application/json` in UTF-8, or no type at all, is taken for JSON."""
    answer = await routes.send("POST", "/v1/notes", {"title": "a"}, content_type=media_type)
    assert answer.status_code == status


async def test_a_body_has_its_limit_whether_it_says_its_length_or_not(routes: Any) -> None:
    """Chunks without a length are counted as they come."""

    async def chunks() -> Any:
        for _ in range(17):
            yield b" " * 65536

    for content in (b" " * (1024 * 1024 + 1), chunks()):
        answer = await routes.http.post("/v1/notes", content=content, headers={"idempotency-key": "k"})
        assert code_of(answer) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_caller_that_leaves_in_the_middle_is_no_broken_service(routes: Any) -> None:
    """The request is refused as incomplete, not logged as a failure, and nothing is done."""
    sent: list[Any] = []
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"title"', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/notes", "query_string": b""}
    await routes.app({**scope, "headers": [(b"idempotency-key", b"k")]}, receive, send)
    assert sent[0]["status"] == 422
    assert (await routes.send("GET", "/v1/notes")).json()["items"] == []


async def test_a_problem_never_repeats_what_was_sent(routes: Any) -> None:
    """A value may be a secret, and problems are logged."""
    for path, body in (
        ("/v1/notes", {"title": {"password": "hunter2"}}),
        ("/v1/notes:praise", {"title": ["hunter2"]}),
        ("/v1/notes:batch_update", {"items": [{"id": "hunter2", "data": {}}]}),
    ):
        answer = await routes.send("POST", path, body)
        assert code_of(answer) == (422, "VALIDATION")
        assert "hunter2" not in answer.text


# ── preferences ──────────────────────────────────────────────────────────────────────────────────


async def test_a_writer_may_do_without_the_record(routes: Any) -> None:
    """Status, `Location` and ETag say what happened."""
    created = await routes.send("POST", "/v1/notes", {"title": "a"}, prefer="return=minimal")
    assert (created.status_code, created.content) == (201, b"")
    assert created.headers["preference-applied"] == "return=minimal"
    path, etag = created.headers["location"], created.headers["etag"]
    changed = await routes.send("PATCH", path, {"stars": 1}, if_match=etag, prefer="return=minimal")
    assert (changed.status_code, changed.content) == (204, b"")
    read = await routes.send("GET", path)
    assert read.headers["etag"] == changed.headers["etag"] != etag
    body = {"items": [{"data": {"title": "b"}}]}
    for target, sent in (
        ("/v1/notes:batch_create", body),
        ("/v1:transact", {"operations": []}),
        ("/v1/notes:praise", {"title": "a"}),
    ):
        answer = await routes.send("POST", target, sent, prefer="return=minimal")
        assert (answer.status_code, answer.content) == (204, b"")


async def test_a_dry_run_answers_as_the_write_would_and_leaves_nothing(routes: Any) -> None:
    """Neither a record nor its key is kept."""
    answer = await routes.send("POST", "/v1/notes", {"title": "a"}, key="k", prefer="tx=rollback")
    assert answer.status_code == 201
    assert answer.headers["preference-applied"] == "tx=rollback"
    assert (await routes.send("GET", answer.headers["location"])).status_code == 404
    done = await routes.send("POST", "/v1/notes", {"title": "a"}, key="k")
    assert "idempotency-replayed" not in done.headers


async def test_a_write_of_more_than_was_meant_is_not_done(routes: Any) -> None:
    """`max-affected` is checked before anything is written; no number is no limit to ignore."""
    items = [{"data": {"title": "a"}}, {"data": {"title": "b"}}]
    for limit, status in (("1", 422), ("many", 422), ("2", 200)):
        answer = await routes.send(
            "POST", "/v1/notes:batch_create", {"items": items}, prefer=f"max-affected={limit}"
        )
        assert answer.status_code == status
    assert answer.headers["preference-applied"] == "max-affected=2"
    assert len((await routes.send("GET", "/v1/notes")).json()["items"]) == 2


async def test_a_call_takes_no_limit_that_it_can_t_hold(routes: Any) -> None:
    """It can't count what its handler touches, so `max-affected` is refused."""
    path = "/v1/notes:praise"
    limited = await routes.send("POST", path, {"title": "a"}, prefer="max-affected=1000")
    assert code_of(limited) == (422, "VALIDATION")
    assert routes.store.emitted == []
    assert (await routes.send("POST", path, {"title": "a"}, prefer="return=minimal")).status_code == 204


async def test_an_assert_touches_nothing(routes: Any) -> None:
    """It doesn't count for `max-affected`."""
    record = await routes.create()
    operations = [{"op": "assert", "resource": "notes", "id": record["id"]}]
    answer = await routes.send("POST", "/v1:transact", {"operations": operations}, prefer="max-affected=0")
    assert answer.json() == {"results": [None]}


@pytest.mark.parametrize("preference", ["count=exact", "count=estimated", 'COUNT="exact"; x=1, count=none'])
async def test_a_page_counts_everything_that_fits_on_request(routes: Any, preference: str) -> None:
    """The count goes beyond the page; an unknown way to count is ignored."""
    for _ in range(3):
        await routes.create()
    answer = await routes.send("GET", "/v1/notes?page_size=1&title=eq.a", prefer=preference)
    assert answer.json()["total_size"] == 3
    assert answer.headers["preference-applied"].startswith("count=e")
    answer = await routes.send("POST", "/v1/notes:query", {"page_size": 1}, prefer="count=most, wait=1")
    assert "total_size" not in answer.json()
    assert "preference-applied" not in answer.headers


# ── conditions ───────────────────────────────────────────────────────────────────────────────────


async def test_a_resource_may_insist_on_a_condition(routes: Any) -> None:
    """Every way to change its records is refused with 428 until it names a state; `*` names none."""
    created = await routes.send("PUT", "/v1/tags/a", {"id": "a", "color": "red"}, if_none_match="*")
    assert created.status_code == 201
    whole, changes = {"id": "a", "color": "blue"}, {"color": "blue"}
    for method, body in (("PUT", whole), ("PATCH", changes), ("DELETE", None)):
        for condition in ({}, {"if_match": "*"}):
            answer = await routes.send(method, "/v1/tags/a", body, **condition)
            assert code_of(answer) == (428, "PRECONDITION_REQUIRED")
    for path, item in (
        ("/v1/tags:batch_update", {"id": "a", "data": changes}),
        ("/v1/tags:batch_upsert", {"id": "a", "data": whole}),
        ("/v1/tags:batch_delete", {"id": "a"}),
    ):
        assert code_of(await routes.send("POST", path, {"items": [item]})) == (428, "PRECONDITION_REQUIRED")
    operation = {"op": "update", "resource": "tags", "id": "a", "data": changes}
    answer = await routes.send("POST", "/v1:transact", {"operations": [operation]})
    assert code_of(answer) == (428, "PRECONDITION_REQUIRED")
    changed = await routes.send("PATCH", "/v1/tags/a", changes, if_match=created.headers["etag"])
    assert changed.json()["color"] == "blue"


async def test_a_reader_that_has_the_state_gets_no_body(routes: Any) -> None:
    """Tags are compared weakly, and any of a list is enough."""
    record = await routes.create()
    path = f"/v1/notes/{record['id']}"
    answer = await routes.send("GET", path, if_none_match=f'W/{record["etag"]}, "other"')
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", record["etag"])


@pytest.mark.parametrize(
    ("method", "condition"),
    [
        ("DELETE", {"if_none_match": "*"}),
        ("PUT", {"if_none_match": '"1-1"'}),
        ("PUT", {"if_none_match": "*", "if_match": '"1-1"'}),
    ],
)
async def test_a_condition_that_makes_no_sense_is_refused(
    routes: Any, method: str, condition: dict[str, str]
) -> None:
    """Ignored, it would be a write on no condition."""
    body = None if method == "DELETE" else {"title": "a"}
    answer = await routes.send(method, f"/v1/notes/{MISSING}", body, **condition)
    assert code_of(answer) == (422, "VALIDATION")


async def test_a_replay_says_that_its_records_are_those_of_now(routes: Any) -> None:
    """A large answer is not kept with its key, only what it was about."""

    class Forgetful:
        async def write(self, _: Any) -> Outcome:
            return Outcome((Result(),), replayed=True, reread=True)

    routes.app.state.store = Forgetful()
    items = {"items": [{"data": {"title": "a"}}]}
    answer = await routes.send("POST", "/v1/notes:batch_create", items)
    assert answer.json() == {"items": [None]}
    assert (answer.headers["idempotency-replayed"], answer.headers["idempotency-reread"]) == ("true", "true")


async def test_a_removed_record_comes_back(routes: Any) -> None:
    """It has its values, and a new ETag."""
    record = await routes.create()
    path = f"/v1/notes/{record['id']}"
    assert (await routes.send("DELETE", path)).status_code == 204
    assert (await routes.send("GET", path)).status_code == 404
    back = await routes.send("POST", f"{path}:undelete")
    assert (back.status_code, back.json()["title"]) == (200, "a")
    assert back.headers["etag"] == back.json()["etag"] == (await routes.send("GET", path)).headers["etag"]


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_is_answered_in_its_order(routes: Any) -> None:
    """Every kind of batch keeps it; made ids are the same when the batch is repeated."""
    items = [{"data": {"title": "a"}}, {"id": MISSING, "data": {"title": "b"}}]
    body = {"items": items}
    created = await routes.send("POST", "/v1/notes:batch_create", body, key="k")
    first, second = created.json()["items"]
    assert (first["title"], second["id"]) == ("a", MISSING)
    again = await routes.send("POST", "/v1/notes:batch_create", body, key="k")
    assert again.json() == created.json()
    assert again.headers["idempotency-replayed"] == "true"
    changed = await routes.send(
        "POST",
        "/v1/notes:batch_update",
        {"items": [{"id": first["id"], "data": {"stars": 2}, "if_match": first["etag"]}]},
    )
    assert changed.json()["items"][0]["stars"] == 2
    replaced = await routes.send(
        "POST", "/v1/notes:batch_upsert", {"items": [{"id": MISSING, "data": {"title": "c"}}]}
    )
    assert replaced.json()["items"][0]["title"] == "c"
    removed = await routes.send("POST", "/v1/notes:batch_delete", {"items": [{"id": MISSING}]})
    assert removed.json() == {"items": [None]}
    read = await routes.send("POST", "/v1/notes:batch_get", {"ids": [MISSING, first["id"]]})
    assert [record and record["id"] for record in read.json()["items"]] == [None, first["id"]]


@pytest.mark.parametrize(
    ("kind", "item", "pointer"),
    [
        ("create", {"data": {"title": "a"}, "if_match": "x"}, "/items/0/if_match"),
        ("create", {"id": MISSING}, "/items/0/data"),
        ("create", {"data": {}}, "/items/0/data/title"),
        ("create", {"id": "nonsense", "data": {"title": "a"}}, "/items/0/id"),
        ("update", {"data": {}}, "/items/0/id"),
        ("update", {"id": MISSING, "data": {"title": "a", "price": 1}}, "/items/0/data/price"),
        ("upsert", {"id": MISSING}, "/items/0/data"),
        ("delete", {"id": MISSING, "data": {}}, "/items/0/data"),
    ],
)
async def test_a_batch_points_at_what_does_not_fit(
    routes: Any, kind: str, item: dict[str, Any], pointer: str
) -> None:
    """The pointer has the number of the item and the member in it."""
    answer = await routes.send("POST", f"/v1/notes:batch_{kind}", {"items": [item]})
    assert code_of(answer) == (422, "VALIDATION")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_a_natural_key_is_in_a_batch_or_in_its_data(routes: Any) -> None:
    """One that is in neither is missing; two that differ are refused."""
    tag = {"id": "a", "color": "red"}
    answer = await routes.send("POST", "/v1/tags:batch_create", {"items": [{"data": tag}]})
    assert answer.json()["items"][0]["id"] == "a"
    for item, pointer in (
        ({"data": {"color": "red"}}, "/items/0/id"),
        ({"id": "b", "data": tag}, "/items/0/data/id"),
    ):
        answer = await routes.send("POST", "/v1/tags:batch_create", {"items": [item]})
        assert answer.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("ids", [["nonsense"], "a", None, [MISSING] * 1001])
async def test_a_batch_of_ids_has_its_limits(routes: Any, ids: object) -> None:
    """It has at most 1,000 ids, and each of them is one of the resource."""
    answer = await routes.send("POST", "/v1/notes:batch_get", {"ids": ids})
    assert code_of(answer) == (422, "VALIDATION")


# ── who may do what ──────────────────────────────────────────────────────────────────────────────


NEED: dict[str, Any] = {
    "POST /v1/notes": {"title": "a"},
    "PUT /v1/notes/x": {"title": "a"},
    "DELETE /v1/notes/x": None,
    "POST /v1/notes/x:undelete": None,
    "POST /v1/notes:batch_delete": {"items": [{"id": MISSING}]},
    "POST /v1/notes:praise": {"title": "a"},
    "POST /v1:transact": {"operations": [{"op": "delete", "resource": "notes", "id": MISSING}]},
}


async def test_a_reader_may_read_and_nothing_else(routes: Any) -> None:
    """A grant without anything allows nothing."""
    routes.admit({"reader": Grant(read="*"), "stranger": Grant()})
    for target, body in NEED.items():
        method, path = target.split(" ")
        answer = await routes.send(method, path, body, x_service_name="reader")
        assert code_of(answer) == (403, "ACCESS_DENIED")
    for method, path, body in READS:
        answer = await routes.send(method, path, body, x_service_name="reader")
        assert answer.status_code in (200, 404)
        answer = await routes.send(method, path, body, x_service_name="stranger")
        assert code_of(answer) == (403, "ACCESS_DENIED")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"operations": []},
        {"odd": 1},
        [],
        b"{",
        {"operations": [{"op": "create", "resource": "notes", "id": MISSING, "data": {"odd": 1}}]},
        {"operations": [{"op": "update", "resource": "nothing", "id": MISSING}]},
    ],
)
async def test_who_may_do_nothing_learns_nothing_from_a_transaction(routes: Any, body: object) -> None:
    """The refusal shows no schema and no record, and keeps no key."""
    routes.admit({"stranger": Grant()})
    for caller in ("stranger", "unheard_of"):
        answer = await routes.send("POST", "/v1:transact", body, x_service_name=caller)
        assert code_of(answer) == (403, "ACCESS_DENIED")


async def test_rights_are_checked_before_fields(routes: Any) -> None:
    """A caller learns nothing about records that it may not touch."""
    routes.admit({"reader": Grant(read="*")})
    wrong: dict[str, Any] = {"resource": "notes", "id": "no id", "data": {"odd": 1}}
    for op, more in (("create", {}), ("upsert", {}), ("update", {"require": {"eq": ["odd", 1]}})):
        body = {"operations": [{"op": op, **wrong, **more}]}
        answer = await routes.send("POST", "/v1:transact", body, x_service_name="reader")
        assert code_of(answer) == (403, "ACCESS_DENIED"), op
    allowed = {"operations": [{"op": "assert", "resource": "notes", "id": "no id"}]}
    answer = await routes.send("POST", "/v1:transact", allowed, x_service_name="reader")
    assert code_of(answer) == (422, "VALIDATION")


async def test_emitting_is_a_right_of_its_own(routes: Any) -> None:
    """Writing everything does not include it, and without a broker nobody has it."""
    routes.admit({"quiet": Grant(write="*"), "loud": Grant(emit=True)})
    event = {
        "event_type": "note.read",
        "event_id": MISSING,
        "timestamp": "2026-01-15T10:30:00Z",
        "request_id": "r",
        "data": {},
    }
    body = {"emit": [event]}
    assert code_of(await routes.send("POST", "/v1:transact", body, x_service_name="quiet"))[0] == 403
    assert (await routes.send("POST", "/v1:transact", body, x_service_name="loud")).status_code == 200
    assert [emission.event_type for emission in routes.store.emitted] == ["note.read"]
    routes.app.state.can_emit = False
    answer = await routes.send("POST", "/v1:transact", body, x_service_name="loud")
    assert code_of(answer) == (501, "NOT_SUPPORTED")


async def test_a_caller_has_a_name(routes: Any) -> None:
    """It is in snake_case, as it becomes a part of keys."""
    answer = await routes.send("GET", "/v1/notes", x_service_name="No Name")
    assert code_of(answer) == (422, "VALIDATION")
