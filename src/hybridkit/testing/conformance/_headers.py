"""Header fields, methods and media types: the rules that come from HTTP itself."""

# ruff: noqa: S101 - these are tests

from collections.abc import Mapping

import pytest

from hybridkit.testing.conformance._resources import LEDGERS, PLACES, THINGS
from hybridkit.testing.conformance._service import ServiceUnderTest, fresh_id, path_of

JSON = "application/json"
NDJSON = "application/x-ndjson"


def two_lines(name: str, first: str, second: str) -> Mapping[str, str]:
    """Return one field on two lines, by names that differ in their case only."""
    return {name: first, name.title(): second}


@pytest.mark.asyncio
class HeadersConformance:
    """Tests of RFC 9110, and of RFC 7240 for `Prefer`."""

    # ── one field on several lines ───────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("limit", ["max-affected=1", "return=minimal; a, max-affected=1"])
    async def test_a_limit_holds_on_any_line_of_prefer(self, service: ServiceUnderTest, limit: str) -> None:
        """A reader of the first line only would delete more records than the caller allows."""
        ids = [(await service.thing())["id"] for _ in range(2)]
        body = {"items": [{"id": record_id} for record_id in ids]}
        for first, second in ((limit, "x"), ("x", limit)):
            answer = await service.write(
                "POST", f"{THINGS.path}:batch_delete", body, **two_lines("prefer", first, second)
            )
            assert answer.problem == (422, "VALIDATION"), first
        assert len(await service.find()) == 2

    async def test_a_trial_stays_one_on_any_line_of_prefer(self, service: ServiceUnderTest) -> None:
        """A reader of one line only would do the write for good."""
        service.needs("transactions")
        for first, second in (("return=minimal", "tx=rollback"), ("tx=rollback", "return=minimal")):
            answer = await service.write(
                "POST", THINGS.path, {"tag": service.tag}, **two_lines("prefer", first, second)
            )
            assert answer.status == 201
        assert await service.find() == []

    async def test_a_state_is_named_on_any_line(self, service: ServiceUnderTest) -> None:
        """A reader that has it gets no body, and a writer that has read it may write."""
        record = await service.thing()
        path, etag = path_of(THINGS, record["id"]), record["etag"]
        for headers in (
            {"if-none-match": f'"other", {etag}'},
            two_lines("if-none-match", '"other"', etag),
            two_lines("if-none-match", f"W/{etag}", '"other"'),
        ):
            assert (await service.ask("GET", path, headers=headers)).status == 304, headers
        for number, name in enumerate(("If-Match", "if-match")):
            headers = two_lines("if-match", '"9-9"', etag) if number else {name: f'"9-9", {etag}'}
            changed = await service.write("PATCH", path, {"rank": number}, **headers)
            assert changed.status == 200, headers
            etag = changed.headers["etag"]
        stale = await service.write("PATCH", path, {"rank": 9}, **two_lines("if-match", '"9-9"', '"8-8"'))
        assert stale.problem == (412, "PRECONDITION_FAILED")

    async def test_a_list_of_media_types_is_one_on_any_line(self, service: ServiceUnderTest) -> None:
        """The most welcome type is chosen over all lines of `Accept`."""
        headers = two_lines("accept", "application/json;q=0.5", NDJSON)
        answer = await service.ask("GET", f"{THINGS.path}?tag=eq.{service.tag}", headers=headers)
        assert answer.headers["content-type"].startswith(NDJSON)

    @pytest.mark.parametrize(
        ("name", "first", "second"),
        [
            ("idempotency-key", '"a"', '"b"'),
            ("x-request-timeout", "30", "20"),
            ("x-request-id", "a", "b"),
            ("x-user-id", "a", "b"),
            ("content-type", "application/json", "text/plain"),
        ],
    )
    async def test_a_field_of_one_value_has_one(
        self, service: ServiceUnderTest, name: str, first: str, second: str
    ) -> None:
        """Where its lines differ, one reader would act on the one and another on the other."""
        answer = await service.write(
            "POST", THINGS.path, {"tag": service.tag}, **two_lines(name, first, second)
        )
        assert answer.problem == (400, "INVALID_HEADER")
        assert answer.pointers == [f"/header/{name}"]
        assert await service.find() == []

    # ── what stands in a field ───────────────────────────────────────────────────────────────────

    async def test_a_quoted_preference_is_one_value(self, service: ServiceUnderTest) -> None:
        """Commas and semicolons in quotes end nothing, so no other preference begins in it."""
        made = await service.write(
            "POST", THINGS.path, {"tag": service.tag}, prefer='note="a, tx=rollback; \\", return=minimal"'
        )
        assert (made.status, len(await service.find())) == (201, 1)
        assert "preference-applied" not in made.headers

    async def test_the_first_of_two_equal_preferences_holds(self, service: ServiceUnderTest) -> None:
        """A second limit can't widen the first (RFC 7240, section 2)."""
        body = {"items": [{"data": {"tag": service.tag}}] * 2}
        path = f"{THINGS.path}:batch_create"
        answer = await service.write("POST", path, body, prefer="max-affected=1, max-affected=5")
        assert answer.problem == (422, "VALIDATION")

    async def test_a_preference_that_can_t_be_read_is_refused(self, service: ServiceUnderTest) -> None:
        """The write is not done: what was meant might have been a dry run."""
        made = await service.write("POST", THINGS.path, {"tag": service.tag}, prefer='a="b, tx=rollback')
        assert made.problem == (400, "INVALID_HEADER")
        assert await service.find() == []

    @pytest.mark.parametrize("tag", ["1-2a", "junk", 'W/"a', '"a" "b"', '*, "a"'])
    async def test_a_tag_has_its_quotes(self, service: ServiceUnderTest, tag: str) -> None:
        """Anything else is refused with a pointer to its header, and the record stays as it is."""
        record = await service.thing()
        path = path_of(THINGS, record["id"])
        for method, name in (("PATCH", "if-match"), ("GET", "if-none-match"), ("PUT", "if-none-match")):
            body = b"" if method == "GET" else {"tag": service.tag}
            answer = await service.write(method, path, body, **{name: tag})
            assert answer.problem == (400, "INVALID_HEADER"), method
            assert answer.pointers == [f"/header/{name}"]
        assert (await service.get(path)).json() == record

    @pytest.mark.parametrize("key", ['"a', '"a" b', 'a"b', '"a"b"', '"a\\b"', '"a", "b"'])
    async def test_a_quoted_key_is_a_string(self, service: ServiceUnderTest, key: str) -> None:
        """A key whose quotes are not in order could be read in two ways."""
        answer = await service.write("POST", THINGS.path, {"tag": service.tag}, idempotency_key=key)
        assert answer.problem == (422, "VALIDATION")

    async def test_a_key_is_the_same_with_parameters(self, service: ServiceUnderTest) -> None:
        """They mean nothing, so they make no other key."""
        first = await service.write("POST", THINGS.path, {"tag": service.tag}, key=service.tag)
        again = await service.write(
            "POST", THINGS.path, {"tag": service.tag}, idempotency_key=f'"{service.tag}";x=1'
        )
        assert (again.status, again.json()["id"]) == (201, first.json()["id"])

    @pytest.mark.parametrize(
        "kind",
        [
            "application/json-patch+json",
            "application/problem+json",
            "application/ld+json",
            "application/geo+json",
            "application/vnd.api+json",
            "application/json; charset=utf-16",
            "text/json",
        ],
    )
    async def test_a_body_is_of_a_type_that_the_route_takes(
        self, service: ServiceUnderTest, kind: str
    ) -> None:
        """JSON under another name means something else, such as a list of patch operations."""
        record = await service.thing(rank=1)
        path = path_of(THINGS, record["id"])
        bodies: list[tuple[str, str, object]] = [
            ("PATCH", path, {"rank": 2}),
            ("PUT", path, {"tag": service.tag}),
            ("POST", THINGS.path, {"tag": service.tag}),
            ("POST", f"{THINGS.path}:query", {}),
            ("POST", "/v1:transact", {"operations": []}),
        ]
        for method, target, body in bodies:
            answer = await service.write(method, target, body, content_type=kind)
            assert answer.problem == (415, "UNSUPPORTED_MEDIA_TYPE"), method
        assert await service.find() == [record]

    async def test_a_merge_patch_is_for_a_patch(self, service: ServiceUnderTest) -> None:
        """`PATCH` takes it, and plain JSON too; `PUT` takes JSON only."""
        record = await service.thing(rank=1)
        path = path_of(THINGS, record["id"])
        for kind in ("application/merge-patch+json;charset=utf-8", "Application/JSON"):
            answer = await service.write("PATCH", path, {"rank": 2}, content_type=kind)
            assert answer.status == 200, kind
        put = await service.write(
            "PUT", path, {"tag": service.tag}, content_type="application/merge-patch+json"
        )
        assert put.problem == (415, "UNSUPPORTED_MEDIA_TYPE")

    # ── the answer's media type ──────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            ("Application/X-NDJSON", NDJSON),
            (f"{NDJSON}, application/json;q=0.9", NDJSON),
            ("application/json;q=0, */*", NDJSON),
            (f"{NDJSON};q=0, application/json", JSON),
            (f"{NDJSON};q=0.1, application/json", JSON),
            (f"{NDJSON};q=0.5, */*", JSON),
            ("*/*", JSON),
            ("text/html, */*;q=0.1", JSON),
        ],
    )
    async def test_the_most_welcome_media_type_is_answered(
        self, service: ServiceUnderTest, accept: str, kind: str
    ) -> None:
        """The weight decides, then the order; `Vary` tells caches that the answer depends on it."""
        target = f"{THINGS.path}?tag=eq.{service.tag}"
        answer = await service.ask("GET", target, headers={"accept": accept})
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(kind)
        assert sorted(answer.headers["vary"].lower().split(", ")) == ["accept", "prefer"]

    async def test_what_nobody_can_read_is_not_answered(self, service: ServiceUnderTest) -> None:
        """A write is refused before it happens."""
        for accept in ("text/html", "application/json;q=0", f"{NDJSON}-foo"):
            found = await service.get(THINGS.path, accept=accept)
            assert found.problem == (406, "NOT_ACCEPTABLE"), accept
            made = await service.write("POST", THINGS.path, {"tag": service.tag}, accept=accept)
            assert made.problem == (406, "NOT_ACCEPTABLE"), accept
        assert await service.find() == []

    # ── methods ──────────────────────────────────────────────────────────────────────────────────

    async def test_head_is_get_without_its_body(self, service: ServiceUnderTest) -> None:
        """Status and headers are those of `GET`, its length included."""
        record = await service.thing()
        await service.write("POST", PLACES.path, {"id": service.tag, "title": "x"})
        mine = f"{THINGS.path}?tag=eq.{service.tag}"
        for path in (path_of(THINGS, record["id"]), path_of(PLACES, service.tag), mine):
            full, head = await service.ask("GET", path), await service.ask("HEAD", path)
            assert (head.status, head.body) == (200, b""), path
            for name in ("content-type", "content-length", "etag", "vary"):
                assert head.headers.get(name) == full.headers.get(name), (path, name)
            assert int(head.headers["content-length"]) == len(full.body)
        export = await service.ask("HEAD", mine, headers={"accept": NDJSON})
        assert (export.status, export.body) == (200, b"")
        assert export.headers["content-type"].startswith(NDJSON)

    async def test_head_is_refused_as_get_is(self, service: ServiceUnderTest) -> None:
        """Conditions, filters and deadlines hold for it as well, and no refusal has a body."""
        record = await service.thing()
        path = path_of(THINGS, record["id"])
        for target, headers, status in (
            (path, {"if-none-match": record["etag"]}, 304),
            (path, {"if-none-match": "*"}, 304),
            (path, {"if-match": '"9-9"'}, 412),
            (path, {"if-match": record["etag"]}, 200),
            (path_of(THINGS, fresh_id()), {}, 404),
            (f"{THINGS.path}?odd=eq.1", {}, 400),
            (path, {"x-request-timeout": "0"}, 504),
        ):
            for method in ("GET", "HEAD"):
                answer = await service.ask(method, target, headers=headers)
                assert answer.status == status, (method, target, headers)
                assert not (method == "HEAD" and answer.body)

    async def test_options_tells_the_methods(self, service: ServiceUnderTest) -> None:
        """The answer has no body, and is the same for a record that isn't there."""
        for target, allowed in (
            (THINGS.path, {"GET", "HEAD", "POST"}),
            (path_of(THINGS, fresh_id()), {"GET", "HEAD", "PUT", "PATCH", "DELETE"}),
            (f"{THINGS.path}:query", {"POST"}),
            ("/v1:transact", {"POST"}),
        ):
            answer = await service.ask("OPTIONS", target)
            assert (answer.status, answer.body) == (204, b""), target
            assert set(answer.headers["allow"].split(", ")) >= allowed | {"OPTIONS"}

    # ── what is asked besides ────────────────────────────────────────────────────────────────────

    async def test_a_parameter_that_nothing_reads_is_refused(self, service: ServiceUnderTest) -> None:
        """Ignored, it would be a selection, a limit or a filter that doesn't hold."""
        record = await service.thing()
        path = path_of(THINGS, record["id"])
        asked: list[tuple[str, str, object]] = [
            ("GET", f"{path}?select=id", b""),
            ("HEAD", f"{path}?select=id", b""),
            ("POST", f"{THINGS.path}:query?page_size=5", {}),
            ("POST", f"{THINGS.path}:batch_get?select=id", {"ids": []}),
            ("POST", f"{THINGS.path}?dry_run=true", {"tag": service.tag}),
            ("PATCH", f"{path}?rank=eq.1", {"rank": 2}),
            ("PUT", f"{path}?x", {"tag": service.tag}),
            ("DELETE", f"{path}?if_match=1", b""),
            ("POST", "/v1:transact?x=1", {"operations": []}),
        ]
        for method, target, body in asked:
            answer = await service.write(method, target, body)
            assert answer.status == 400, target
            if method != "HEAD":
                assert answer.problem == (400, "INVALID_QUERY"), target
        assert await service.find() == [record]
        assert (await service.ask("GET", f"{path}?")).status == 200

    async def test_a_key_belongs_to_its_condition_too(self, service: ServiceUnderTest) -> None:
        """Another condition asks for something else; the same one, written otherwise, does not."""
        record = await service.thing()
        path, etag = path_of(THINGS, record["id"]), record["etag"]
        first = await service.write("PATCH", path, {"rank": 1}, key=service.tag, if_match=f'"9-9", {etag}')
        assert first.status == 200
        for condition in ({}, {"if-match": "*"}, {"if-match": etag}, {"if-match": first.headers["etag"]}):
            other = await service.write("PATCH", path, {"rank": 1}, key=service.tag, **condition)
            assert other.problem == (422, "IDEMPOTENCY_KEY_REUSED"), condition
        again = await service.write("PATCH", path, {"rank": 1}, key=service.tag, if_match=f'W/{etag},"9-9"')
        assert (again.status, again.headers["idempotency-replayed"]) == (200, "true")
        created = await service.write(
            "PUT",
            path_of(THINGS, fresh_id()),
            {"tag": service.tag},
            key=f"{service.tag} 2",
            if_none_match="*",
        )
        plain = await service.write(
            "PUT", created.headers["location"], {"tag": service.tag}, key=f"{service.tag} 2"
        )
        assert (created.status, plain.problem) == (201, (422, "IDEMPOTENCY_KEY_REUSED"))

    async def test_a_derived_key_gets_the_first_answer_whatever_the_condition(
        self, service: ServiceUnderTest
    ) -> None:
        """A handler that runs again has read what its own first step changed, and so names another state."""
        record = await service.thing()
        path, key = path_of(THINGS, record["id"]), f"hkd_{service.tag}"
        first = await service.write("PATCH", path, {"rank": 1}, key=key, if_match=record["etag"])
        again = await service.write("PATCH", path, {"rank": 2}, key=key, if_match=first.headers["etag"])
        assert (again.status, again.json()) == (200, first.json())
        assert again.headers["idempotency-replayed"] == "true"

    async def test_any_state_is_any_state_in_a_body_too(self, service: ServiceUnderTest) -> None:
        """`*` in `if_match`: the record is there. Where a state has to be named, that names none."""
        record = await service.thing()
        update = {"op": "update", "resource": THINGS.name, "id": record["id"], "data": {"rank": 1}}
        assert (await service.transact({**update, "if_match": "*"})).status == 200
        missing = await service.transact({**update, "id": fresh_id(), "if_match": "*"})
        assert missing.problem == (404, "NOT_FOUND")
        item = {"id": record["id"], "data": {"rank": 2}, "if_match": "*"}
        batch = await service.write("POST", f"{THINGS.path}:batch_update", {"items": [item]})
        assert batch.items[0]["rank"] == 2
        for tag in ("1-2a", "junk", '"1-1", "2-1"', ""):
            answer = await service.transact({**update, "if_match": tag})
            assert answer.problem == (422, "VALIDATION"), tag
            assert answer.pointers == ["/operations/0/if_match"]
        ledger = (await service.write("POST", LEDGERS.path, {"balance": 1})).json()
        change = {"op": "update", "resource": LEDGERS.name, "id": ledger["id"], "data": {"balance": 2}}
        unnamed = await service.transact({**change, "if_match": "*"})
        assert unnamed.problem == (428, "PRECONDITION_REQUIRED")
