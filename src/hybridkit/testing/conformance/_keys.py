"""Idempotency keys: what is done once is answered again."""

# ruff: noqa: S101 - these are tests

import asyncio
from collections import Counter
from typing import Any

import pytest

from hybridkit.testing.conformance._resources import PLACES, THINGS
from hybridkit.testing.conformance._service import Answer, ServiceUnderTest, fresh_id, path_of

__all__ = ["KeysConformance"]


@pytest.mark.asyncio
class KeysConformance:
    """Tests that a key has one effect."""

    async def test_twenty_at_once_create_one_record(self, service: ServiceUnderTest) -> None:
        """One creates, nineteen get its answer; a call that finds the key in use comes again, as a client does."""

        async def create() -> tuple[int, str | None, Any]:
            while True:
                answer = await service.write("POST", THINGS.path, {"tag": service.tag}, key=service.tag)
                if answer.status != 409:
                    return answer.status, answer.headers.get("idempotency-replayed"), answer.json()["id"]
                assert answer.problem == (409, "IDEMPOTENCY_IN_PROGRESS")
                assert answer.json()["retryable"] is True
                assert "retry-after" in answer.headers
                await asyncio.sleep(0.05)

        answers = await asyncio.gather(*(create() for _ in range(20)))
        assert {status for status, _, _ in answers} == {201}
        assert Counter(replayed for _, replayed, _ in answers) == {None: 1, "true": 19}
        assert len({record_id for _, _, record_id in answers}) == 1
        assert len(await service.find()) == 1

    async def test_a_replay_is_the_answer_of_then(self, service: ServiceUnderTest) -> None:
        """It has the status, the ETag and the location of then, whatever has happened since."""
        made = await service.write("POST", THINGS.path, {"tag": service.tag}, key=service.tag)
        await service.write("PATCH", made.headers["location"], {"rank": 5})
        again = await service.write("POST", THINGS.path, {"tag": service.tag}, key=service.tag)
        assert (again.status, again.json()) == (201, made.json())
        assert again.headers["idempotency-replayed"] == "true"
        for name in ("etag", "location", "content-type"):
            assert again.headers[name] == made.headers[name]

    async def test_a_deleted_record_stays_deleted(self, service: ServiceUnderTest) -> None:
        """A late retry of its create doesn't bring it back, nor does one of its delete take its successor."""
        made = await service.write("POST", THINGS.path, {"tag": service.tag}, key=service.tag)
        path = made.headers["location"]
        assert (await service.write("DELETE", path, key=f"{service.tag} d")).status == 204
        again = await service.write("POST", THINGS.path, {"tag": service.tag}, key=service.tag)
        assert again.status == 201
        assert (await service.get(path)).status == 404
        await service.write("PUT", path, {"tag": service.tag})
        late = await service.write("DELETE", path, key=f"{service.tag} d")
        assert (late.status, late.headers["idempotency-replayed"]) == (204, "true")
        assert (await service.get(path)).status == 200

    async def test_every_kind_of_write_is_replayed(self, service: ServiceUnderTest) -> None:
        """Status and body are those of the first call, also after a delete, a batch and a transaction."""
        thing = await service.thing()
        await service.write("POST", PLACES.path, {"id": service.tag, "title": "x"})
        await service.write("DELETE", path_of(PLACES, service.tag))
        path = path_of(THINGS, thing["id"])
        writes: list[tuple[str, str, object]] = [
            ("PATCH", path, {"rank": 1}),
            ("PUT", path, {"tag": service.tag}),
            ("DELETE", path, b""),
            ("PUT", path_of(THINGS, fresh_id()), {"tag": service.tag}),
            ("POST", f"{path_of(PLACES, service.tag)}:undelete", b""),
            ("POST", f"{THINGS.path}:batch_create", {"items": [{"data": {"tag": service.tag}}]}),
            (
                "POST",
                "/v1:transact",
                {
                    "operations": [
                        {
                            "op": "create",
                            "resource": THINGS.name,
                            "id": fresh_id(),
                            "data": {"tag": service.tag},
                        }
                    ]
                },
            ),
        ]
        for number, (method, target, body) in enumerate(writes):
            key = f"{service.tag} {number}"
            first = await service.write(method, target, body, key=key)
            again = await service.write(method, target, body, key=key)
            assert first.status < 300, first
            assert (again.status, again.body) == (first.status, first.body), target
            assert again.headers["idempotency-replayed"] == "true", target

    async def test_an_answer_of_up_to_64_kib_is_kept(self, service: ServiceUnderTest) -> None:
        """A replay has the record of then; of a larger answer the record of now, and it says so."""
        for kibibytes, reread in ((60, None), (70, "true")):
            key = f"{service.tag} {kibibytes}"
            body = {"tag": service.tag, "details": {"text": "x" * kibibytes * 1024}}
            made = await service.write("POST", THINGS.path, body, key=key)
            await service.write("PATCH", made.headers["location"], {"rank": 5})
            again = await service.write("POST", THINGS.path, body, key=key)
            assert (again.status, again.headers["idempotency-replayed"]) == (201, "true")
            assert again.headers.get("idempotency-reread") == reread
            assert again.json() == {**made.json(), **({} if reread is None else _changed(again.json()))}

    async def test_a_large_answer_has_no_later_record_with_its_id(self, service: ServiceUnderTest) -> None:
        """What was made after a delete is another record: the replay of the first one's write doesn't show it."""
        path = path_of(THINGS, fresh_id())
        body = {"tag": service.tag, "details": {"text": "x" * 70 * 1024}}
        await service.write("PUT", path, body, key=service.tag)
        await service.write("DELETE", path)
        await service.write("PUT", path, {"tag": service.tag})
        again = await service.write("PUT", path, body, key=service.tag)
        assert (again.status, again.headers["idempotency-reread"]) == (204, "true")

    @pytest.mark.parametrize("size", [1, 70 * 1024])
    async def test_a_minimal_answer_is_replayed_as_it_was(self, service: ServiceUnderTest, size: int) -> None:
        """Status, ETag and location are those of then, for each kind of write, whatever has happened since."""
        body = {"tag": service.tag, "details": {"text": "x" * size}}
        made = await service.write("POST", THINGS.path, body, key=service.tag, prefer="return=minimal")
        path = made.headers["location"]
        replaced = {**body, "rank": 2}
        writes: list[tuple[str, str, object]] = [
            ("PATCH", path, {"rank": 1}),
            ("PUT", path, replaced),
            ("POST", f"{THINGS.path}:batch_create", {"items": [{"data": body}]}),
            ("POST", f"{THINGS.path}:batch_update", {"items": [{"id": path.rpartition("/")[2], "data": {}}]}),
            ("DELETE", path, b""),
        ]
        answers: list[tuple[str, str, object, Answer]] = [("POST", THINGS.path, body, made)]
        for number, (method, target, sent) in enumerate(writes):
            key = f"{service.tag} {number}"
            answer = await service.write(method, target, sent, key=key, prefer="return=minimal")
            assert (answer.status, answer.body) == (204, b"")
            answers.append((method, target, sent, answer))
        for number, (method, target, sent, first) in enumerate(answers, -1):
            key = service.tag if number < 0 else f"{service.tag} {number}"
            again = await service.write(method, target, sent, key=key, prefer="return=minimal")
            assert (again.status, again.body) == (first.status, b""), target
            assert again.headers["idempotency-replayed"] == "true"
            assert "idempotency-reread" not in again.headers
            for name in ("etag", "location", "preference-applied"):
                assert again.headers.get(name) == first.headers.get(name), (target, name)

    async def test_a_minimal_answer_may_be_asked_for_with_its_record_later(
        self, service: ServiceUnderTest
    ) -> None:
        """Only id and state were kept, so the record is the one of now, and the answer says that it was read again."""
        body = {"tag": service.tag}
        made = await service.write("POST", THINGS.path, body, key=service.tag, prefer="return=minimal")
        changed = await service.write("PATCH", made.headers["location"], {"rank": 5})
        again = await service.write("POST", THINGS.path, body, key=service.tag)
        assert (again.status, again.headers["idempotency-reread"]) == (201, "true")
        assert again.json() == changed.json()

    async def test_a_key_belongs_to_one_request(self, service: ServiceUnderTest) -> None:
        """Another body, method or path under it is refused; only blanks may differ."""
        made = await service.write("POST", THINGS.path, {"tag": service.tag}, key=service.tag)
        path = made.headers["location"]
        for method, target, body in (
            ("POST", THINGS.path, {"tag": service.tag, "rank": 1}),
            ("PATCH", path, {"rank": 1}),
            ("DELETE", path, b""),
        ):
            answer = await service.write(method, target, body, key=service.tag)
            assert answer.problem == (422, "IDEMPOTENCY_KEY_REUSED"), method
        shuffled = b' { "tag" : "%b" } ' % service.tag.encode()
        assert (await service.write("POST", THINGS.path, shuffled, key=service.tag)).status == 201

    async def test_a_key_by_order_alone_belongs_to_one_request(self, service: ServiceUnderTest) -> None:
        """Another request may be another item of a loop, so it does nothing; after a refusal any request may come."""
        key, path = f"hkd_n_{service.tag}", path_of(THINGS, fresh_id())
        refused = await service.write("PATCH", path, {"rank": 1}, key=key)
        made = await service.write("POST", THINGS.path, {"tag": service.tag}, key=key)
        other = await service.write("POST", THINGS.path, {"tag": service.tag, "rank": 1}, key=key)
        again = await service.write("POST", THINGS.path, {"tag": service.tag}, key=key)
        assert (refused.status, made.status) == (404, 201)
        assert other.problem == (422, "IDEMPOTENCY_STEP_REUSED")
        assert (again.status, again.json()) == (201, made.json())
        assert len(await service.find()) == 1

    async def test_keys_are_each_caller_s_own(self, service: ServiceUnderTest) -> None:
        """Two services with the same key and body create two records."""
        first = await service.write("POST", THINGS.path, {"tag": service.tag}, key=service.tag)
        second = await service.write(
            "POST", THINGS.path, {"tag": service.tag}, key=service.tag, x_service_name="another_caller"
        )
        assert (first.status, second.status) == (201, 201)
        assert first.json()["id"] != second.json()["id"]

    async def test_a_refusal_is_not_remembered(self, service: ServiceUnderTest) -> None:
        """The same key tries again, as the world may have changed."""
        path = path_of(THINGS, fresh_id())
        refused = await service.write("PATCH", path, {"rank": 1}, key=service.tag)
        await service.write("PUT", path, {"tag": service.tag})
        again = await service.write("PATCH", path, {"rank": 1}, key=service.tag)
        assert (refused.problem, again.status) == ((404, "NOT_FOUND"), 200)

    async def test_every_write_needs_a_key(self, service: ServiceUnderTest) -> None:
        """Without a key nothing is done, whatever the route."""
        record = await service.thing()
        path = path_of(THINGS, record["id"])
        writes: list[tuple[str, str, object]] = [
            ("POST", THINGS.path, {"tag": service.tag}),
            ("PUT", path, {"tag": service.tag}),
            ("PATCH", path, {"rank": 1}),
            ("DELETE", path, b""),
            ("POST", f"{path_of(PLACES, 'x')}:undelete", b""),
            ("POST", f"{THINGS.path}:batch_create", {"items": [{"data": {"tag": service.tag}}]}),
            ("POST", "/v1:transact", {"operations": []}),
        ]
        for method, target, body in writes:
            answer = await service.ask(method, target, body)
            assert answer.problem == (400, "IDEMPOTENCY_KEY_REQUIRED"), target
        assert await service.find() == [record]

    @pytest.mark.parametrize("key", ['""', "x" * 256, '"' + "x" * 256 + '"', "\u00fc"])
    async def test_a_key_is_short_and_printable(self, service: ServiceUnderTest, key: str) -> None:
        """An empty key, one of over 255 characters and one beyond ASCII are refused."""
        answer = await service.ask(
            "POST", THINGS.path, {"tag": service.tag}, headers={"idempotency-key": key}
        )
        assert answer.problem == (422, "VALIDATION")

    async def test_a_key_may_come_bare(self, service: ServiceUnderTest) -> None:
        """A key is the same with and without the quotation marks of a structured field."""
        quoted = await service.write("POST", THINGS.path, {"tag": service.tag}, key=service.tag)
        bare = await service.ask(
            "POST", THINGS.path, {"tag": service.tag}, headers={"idempotency-key": service.tag}
        )
        assert (bare.status, bare.json()) == (201, quoted.json())


def _changed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("rank", "version", "updated_at", "etag")}
