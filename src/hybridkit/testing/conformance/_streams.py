"""Streams of events: appended once, in order, by who has seen the last version; read whole, in parts, and as a log."""

# ruff: noqa: S101 - these are tests

import asyncio
from typing import Any, Final
from urllib.parse import quote

import pytest
from pydantic import BaseModel

from hybridkit.codec import format_timestamp, now
from hybridkit.events import Event
from hybridkit.ids import new_id
from hybridkit.streams import Stream
from hybridkit.testing.conformance._resources import LEDGERS
from hybridkit.testing.conformance._service import Answer, ServiceUnderTest, fresh_id


class Counted(Event, type="conformance.counted", key="counter_id"):
    """A step of a counter."""

    counter_id: str
    by: int = 1
    note: Any = None


class Count(BaseModel):
    """The state of a counter."""

    total: int = 0


COUNTERS: Final = Stream("conformance_counters", state=Count, key="counter_id")


@COUNTERS.apply(Counted)
def counted(count: Count, event: Counted) -> Count:
    """Return the count after a step."""
    return Count(total=count.total + event.by)


def event(counter: str, *, by: int = 1, **members: Any) -> dict[str, Any]:
    """Return an event as it is sent."""
    return {
        "event_type": "conformance.counted",
        "event_id": str(new_id()),
        "timestamp": format_timestamp(now()),
        "data": {"counter_id": counter, "by": by},
        **members,
    }


async def append(
    service: ServiceUnderTest,
    counter: str,
    *events: dict[str, Any],
    expected: int | None = None,
    key: str | None = None,
    **more: Any,
) -> Answer:
    """Append events, by default one, to a counter."""
    body = {"expected_version": expected, "events": events or [event(counter)], **more}
    return await service.write("POST", _path(counter, ":append"), body, key=key)


async def stream(service: ServiceUnderTest, counter: str, **params: object) -> dict[str, Any]:
    """Return a page of a counter."""
    given = [(name, str(value)) for name, value in params.items()]
    answer = await service.get(_path(counter), given)
    assert answer.status == 200, answer
    return dict(answer.json())


def _path(counter: str, suffix: str = "") -> str:
    return f"{COUNTERS.path}/{quote(counter, safe='')}{suffix}"


@pytest.mark.asyncio
class StreamsConformance:
    """Tests of streams."""

    @pytest.fixture(autouse=True)
    def _has_streams(self, request: pytest.FixtureRequest, service: ServiceUnderTest) -> None:
        if hasattr(
            StreamsConformance, request.node.originalname
        ):  # the suite's other tests have this fixture too
            service.needs("streams")

    async def test_a_stream_without_events_is_empty(self, service: ServiceUnderTest) -> None:
        """It has the version 0, and no such thing as 404: any id may be appended to."""
        assert await stream(service, fresh_id()) == {
            "version": 0,
            "done": None,
            "snapshot": None,
            "events": [],
        }

    async def test_what_is_appended_is_read(self, service: ServiceUnderTest) -> None:
        """Events come back with their place, their data as it was sent, and who appended them."""
        counter = fresh_id()
        note = {"text": 'é"\\\u2028', "number": 12345678901234567890, "deep": [[None, True, 1.5]]}
        sent = event(counter, version=3)
        sent["data"]["note"] = note
        answer = await append(service, counter, sent, expected=0)
        assert (answer.status, answer.json()) == (200, {"version": 1})
        [found] = (await stream(service, counter))["events"]
        assert found["data"] == {"counter_id": counter, "by": 1, "note": note}
        assert (found["stream_id"], found["version"], found["event_version"]) == (counter, 1, 3)
        assert (found["event_id"], found["event_type"]) == (sent["event_id"], "conformance.counted")
        assert found["timestamp"].startswith(sent["timestamp"][:19])
        assert found["caller"]
        assert found["request_id"]

    async def test_another_version_is_412(self, service: ServiceUnderTest) -> None:
        """The problem has the version of now, and nothing is appended."""
        counter = fresh_id()
        for expected in (1, 7):
            answer = await append(service, counter, expected=expected)
            assert answer.problem == (412, "PRECONDITION_FAILED")
            assert answer.json()["current"] == "0"
        assert (await append(service, counter, expected=0)).json() == {"version": 1}
        assert (await append(service, counter, expected=0)).json()["current"] == "1"
        assert (await stream(service, counter))["version"] == 1

    async def test_one_of_many_at_once_wins(self, service: ServiceUnderTest) -> None:
        """Of appends that expect the same version one is done, the others are refused with its version."""
        counter = fresh_id()
        answers = await asyncio.gather(*(append(service, counter, expected=0) for _ in range(10)))
        assert sorted(answer.status for answer in answers) == [200, *[412] * 9]
        assert {answer.json()["current"] for answer in answers if answer.status == 412} == {"1"}

    async def test_appends_to_any_version_are_all_done(self, service: ServiceUnderTest) -> None:
        """Without an expected version appends queue up, and versions have no hole."""
        counter = fresh_id()
        answers = await asyncio.gather(*(append(service, counter) for _ in range(10)))
        assert sorted(answer.json()["version"] for answer in answers) == list(range(1, 11))
        found = (await stream(service, counter))["events"]
        assert [each["version"] for each in found] == list(range(1, 11))

    @pytest.mark.parametrize("expected", [0, None])
    async def test_a_repeated_append_is_answered_again(
        self, service: ServiceUnderTest, expected: int | None
    ) -> None:
        """The same key appends once, also to any version, and answers with the version of then."""
        counter, sent = fresh_id(), event(fresh_id())
        sent["data"]["counter_id"] = counter
        for replayed in (None, "true"):
            answer = await append(service, counter, sent, expected=expected, key=service.tag)
            assert (answer.status, answer.json()) == (200, {"version": 1})
            assert answer.headers.get("idempotency-replayed") == replayed
            await append(service, counter)
        assert (await stream(service, counter))["version"] == 3

    async def test_a_read_tells_what_a_key_has_done(self, service: ServiceUnderTest) -> None:
        """With its key, a reader learns the version that its own append has reached, if it was done."""
        counter = fresh_id()
        named = {"idempotency-key": f'"{service.tag}"'}
        for done in (None, 1):
            answer = await service.ask("GET", _path(counter), headers=named)
            assert answer.json()["done"] == done
            await append(service, counter, key=service.tag)

    async def test_a_part_is_read(self, service: ServiceUnderTest) -> None:
        """`after` and `up_to` are versions; the answer has the version of the whole stream."""
        counter = fresh_id()
        await append(service, counter, *(event(counter, by=number) for number in range(5)))
        found = await stream(service, counter, after=1, up_to=3)
        assert ([each["data"]["by"] for each in found["events"]], found["version"]) == ([1, 2], 5)

    @pytest.mark.parametrize("query", ["after=-1", "after=x", "up_to=1.5", "state_version=0", "other=1"])
    async def test_a_parameter_that_is_none_is_refused(self, service: ServiceUnderTest, query: str) -> None:
        """A number out of range and an unknown name are 400, with a pointer."""
        answer = await service.ask("GET", f"{_path(fresh_id())}?{query}")
        assert answer.problem == (400, "INVALID_QUERY")

    async def test_ids_are_natural_keys(self, service: ServiceUnderTest) -> None:
        """An id may have slashes, colons and other characters, and is not taken for a route."""
        for counter in (f"a/{service.tag}", f"{service.tag}:append", f"é {service.tag}"):
            assert (await append(service, counter, expected=0)).json() == {"version": 1}
            assert (await stream(service, counter))["events"][0]["stream_id"] == counter

    async def test_a_page_has_1000_events(self, service: ServiceUnderTest) -> None:
        """Longer streams are read page after page."""
        counter = fresh_id()
        for _ in range(11):
            await append(service, counter, *(event(counter) for _ in range(100)))
        first = await stream(service, counter)
        assert (len(first["events"]), first["version"]) == (1000, 1100)
        rest = await stream(service, counter, after=1000)
        assert [each["version"] for each in rest["events"]] == list(range(1001, 1101))

    async def test_the_limits_are_told(self, service: ServiceUnderTest) -> None:
        """No event, 101 events, 64 KiB and more in one event, and an event of another stream are refused."""
        counter = fresh_id()
        large = event(counter)
        large["data"]["note"] = "x" * 65536
        for events in ([], [event(counter)] * 101, [large], [event(fresh_id())]):
            body = {"expected_version": 0, "events": events}
            answer = await service.write("POST", _path(counter, ":append"), body)
            assert answer.status == 422, answer
            assert answer.pointers[0].startswith("/events"), answer
        assert (await stream(service, counter))["version"] == 0

    async def test_an_append_needs_a_key(self, service: ServiceUnderTest) -> None:
        """As every write."""
        counter = fresh_id()
        answer = await service.ask("POST", _path(counter, ":append"), {"events": [event(counter)]})
        assert answer.problem == (400, "IDEMPOTENCY_KEY_REQUIRED")

    async def test_a_snapshot_stands_for_the_events_before_it(self, service: ServiceUnderTest) -> None:
        """It is returned where its state version is asked for, and up to the wanted version only."""
        counter = fresh_id()
        snapshot = {"state_version": 2, "state": '{"total": 2}', "digest": "abc"}
        last = event(counter)
        await append(service, counter, event(counter), last, expected=0, snapshot=snapshot)
        await append(service, counter, expected=2)
        found = await stream(service, counter, state_version=2)
        assert found["snapshot"] == {**snapshot, "version": 2, "event_id": last["event_id"]}
        assert [each["version"] for each in found["events"]] == [3]
        for params in (
            {},
            {"state_version": 1},
            {"state_version": 2, "up_to": 1},
            {"state_version": 2, "after": 2},
        ):
            assert (await stream(service, counter, **params))["snapshot"] is None

    async def test_a_snapshot_needs_a_version(self, service: ServiceUnderTest) -> None:
        """Nobody knows the state after events that were appended to any version."""
        snapshot = {"state_version": 2, "state": "{}", "digest": "abc"}
        answer = await append(service, fresh_id(), snapshot=snapshot)
        assert (answer.status, answer.pointers) == (422, ["/snapshot"])

    async def test_the_log_has_every_event_once(self, service: ServiceUnderTest) -> None:
        """From page to page, with the events of each stream in their order."""
        counters = [fresh_id() for _ in range(3)]
        position = await _end(service)
        await asyncio.gather(*(append(service, counter) for counter in counters for _ in range(5)))
        found: list[tuple[str, int]] = []
        while len(found) < 15:
            page = await _log(service, after=position, page_size=4)
            found += [
                (each["stream_id"], each["version"])
                for each in page["events"]
                if each["stream_id"] in counters
            ]
            position = page["position"]
        assert len(set(found)) == 15
        for counter in counters:
            assert [version for name, version in found if name == counter] == [1, 2, 3, 4, 5]

    async def test_the_log_is_filtered_by_type(self, service: ServiceUnderTest) -> None:
        """Only the wanted types are returned, and the position still goes on to the end."""
        counter, kind = fresh_id(), f"conformance.t{service.tag}"
        position = await _end(service)
        await append(service, counter, event(counter), event(counter, event_type=kind), event(counter))
        events: list[Any] = []
        while not events:
            page = await _log(service, after=position, types=f"{kind},conformance.other")
            events, position = page["events"], page["position"]
        assert [each["version"] for each in events] == [2]
        assert (await _log(service, after=position, types=kind))["events"] == []

    async def test_a_position_is_opaque(self, service: ServiceUnderTest) -> None:
        """One that no page has given is refused."""
        answer = await service.ask("GET", f"{COUNTERS.path}?after=here")
        assert (answer.problem, answer.pointers) == ((400, "INVALID_QUERY"), ["/after"])

    async def test_a_transaction_appends_with_other_operations(self, service: ServiceUnderTest) -> None:
        """All of it or nothing, with a result for each operation in its place."""
        counter, other, ledger = fresh_id(), fresh_id(), fresh_id()
        operations = [
            _append_operation(counter, 0),
            {"op": "create", "resource": LEDGERS.name, "id": ledger, "data": {"balance": 7}},
            _append_operation(other, None),
        ]
        if not service.has("transactions"):
            assert (await service.transact(*operations)).status == 501
            return
        for _ in range(2):
            answer = await service.transact(*operations, key=service.tag)
            assert answer.status == 200, answer
            first, record, last = answer.json()["results"]
            assert (first, record["balance"], last) == ({"version": 1}, 7, {"version": 1})
        operations[1]["id"] = fresh_id()
        stale = await service.transact(*operations)
        assert (stale.problem, stale.json()["current"]) == ((412, "PRECONDITION_FAILED"), "1")
        refused = await service.transact(_append_operation(other, 1), {**operations[1], "id": ledger})
        assert refused.problem == (409, "UNIQUE_VIOLATION")
        assert (await stream(service, other))["version"] == 1

    async def test_a_transaction_appends_once_to_a_stream(self, service: ServiceUnderTest) -> None:
        """Two appends to one stream, and one to a stream that there isn't, are refused with a pointer."""
        counter = fresh_id()
        twice = await service.transact(_append_operation(counter, None), _append_operation(counter, None))
        assert (twice.status, twice.pointers) == (422, ["/operations/1/id"])
        unknown = await service.transact({**_append_operation(counter, None), "resource": LEDGERS.name})
        assert (unknown.status, unknown.pointers) == (422, ["/operations/0/resource"])

    async def test_a_dry_run_appends_nothing(self, service: ServiceUnderTest) -> None:
        """It answers as if, and takes it back."""
        service.needs("transactions")
        counter = fresh_id()
        answer = await service.write(
            "POST", _path(counter, ":append"), {"events": [event(counter)]}, prefer="tx=rollback"
        )
        assert (answer.status, answer.json()) == (200, {"version": 1})
        assert (await stream(service, counter))["version"] == 0


def _append_operation(counter: str, expected: int | None) -> dict[str, Any]:
    return {
        "op": "append",
        "resource": COUNTERS.name,
        "id": counter,
        "expected_version": expected,
        "events": [event(counter)],
    }


async def _log(service: ServiceUnderTest, **params: object) -> dict[str, Any]:
    given = [(name, str(value)) for name, value in params.items() if value is not None]
    answer = await service.get(COUNTERS.path, given)
    assert answer.status == 200, answer
    return dict(answer.json())


async def _end(service: ServiceUnderTest) -> str | None:
    """Return the position of the end of the log."""
    position: str | None = None
    while True:
        page = await _log(service, after=position)
        position = page["position"]
        if not page["has_more"]:
            return position
