"""Reading dead letters of all sorts, choosing among them, and the pace: without a broker."""

import struct
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from pamqp import commands

from hybridkit.errors import MisuseError, UnroutableError
from hybridkit.events.cloudevents import read_wire
from hybridkit.messaging import DeadLetter, DeadLetterFilter, DeadLetters
from hybridkit.messaging._amqp._frames import DeliverMethod
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._dead_letters._letter import Groups, read_dead_letter
from hybridkit.messaging._dead_letters._queue import Pace

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def letter_of(
    headers: Mapping[str, Any] | None = None,
    *,
    body: bytes = b"{}",
    queue: str = "work.dlq",
    exchange: str = "",
    routing_key: str = "work.dlq",
    **properties: Any,
) -> DeadLetter:
    encoded = commands.Basic.Properties(headers=dict(headers or {}), **properties).marshal()
    return read_dead_letter(
        queue,
        1,
        IncomingMessage(
            DeliverMethod(1, redelivered=False, exchange=exchange, routing_key=routing_key), encoded, body
        ),
    )


def death(queue: str, reason: str = "rejected", **more: Any) -> dict[str, Any]:
    return {"queue": queue, "reason": reason, "count": 1, "time": NOON, **more}


# ── where it came from ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("headers", "where", "target"),
    [
        pytest.param(
            {"hk_reason": "malformed", "hk_queue": "ours", "x-death": [death("other")]},
            {},
            "ours",
            id="our header",
        ),
        pytest.param(
            {"hk_queue": "stale", "x-death": [death("broker")]},
            {},
            "broker",
            id="the newest death, not a retry's header",
        ),
        pytest.param(
            {"x-death": [death("hk.delay.L3", "expired"), death("second")]},
            {},
            "second",
            id="a delay is no death",
        ),
        pytest.param(
            {"hk_queue": "ours", "x-death": [death("hk.delay.L3", "expired")]},
            {"queue": "hk.unrouted"},
            "ours",
            id="a retry that found no queue",
        ),
        pytest.param(
            {},
            {"queue": "hk.unrouted", "exchange": "hk.dlx", "routing_key": "a.b"},
            "a.b",
            id="no dead-letter queue",
        ),
        pytest.param(
            {},
            {"queue": "hk.unrouted", "exchange": "hk.delay.deliver", "routing_key": "0." * 17 + "a.b"},
            "a.b",
            id="a delayed command that found no queue",
        ),
        pytest.param({}, {}, "work", id="the queue's name"),
        pytest.param({}, {"queue": "somewhere"}, None, id="nothing"),
        pytest.param({"x-death": [death("work.dlq")]}, {}, "work", id="never the same queue again"),
    ],
)
def test_where_it_came_from_is_told_by_the_best_witness(
    headers: dict[str, Any], where: dict[str, Any], target: str | None
) -> None:
    """Our own header counts before the note of the broker, that before the routing, and the name of the queue last."""
    assert letter_of(headers, **where).target == target


# ── what can be in it ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "headers",
    [
        {"x-death": "soon", "hk_failed_at": "yesterday", "hk_reason": "x", "hk_attempt": "many"},
        {"x-death": ["a", {"queue": 5}, {"queue": "q", "reason": {"a": 1}, "time": "now"}], "hk_error": 5},
        {"hk_reason": ["a"], "hk_generation": -1, "hk_queue": 5, "hk_event_id": bytearray(b"\xff")},
    ],
)
def test_nonsense_in_headers_is_read_as_absent(headers: dict[str, Any]) -> None:
    """A redrive of such a message begins at generation 1."""
    letter = letter_of(headers, body=b"\xff")
    assert (letter.attempts, letter.generation, letter.failed_at, letter.event_id) == (0, 0, None, None)
    assert letter.copy().headers["hk_generation"] == 1


def test_properties_that_can_not_be_decoded_are_none() -> None:
    """A timestamp of the year 292277026596."""
    octets = struct.pack(">HQ", 0x0040, 2**63)
    letter = read_dead_letter(
        "a.dlq", 1, IncomingMessage(DeliverMethod(1, False, "", "a.dlq"), octets, b"{}")
    )
    assert (letter.event_type, letter.target, dict(letter.headers)) == (None, "a", {})


def test_the_body_says_what_the_properties_do_not() -> None:
    """Type and id of the properties count where they are there."""
    body = b'{"event_type": "a.b", "event_id": "1", "data": {}}'
    assert (letter_of(body=body).event_type, letter_of(body=body).event_id) == ("a.b", "1")
    named = letter_of({"hk_event_id": "2"}, body=body, message_type="c.d")
    assert (named.event_type, named.event_id) == ("c.d", "2")


def test_the_brokers_note_has_a_time() -> None:
    """The reason and the time in `x-death` are those of a dead letter that the broker made."""
    letter = letter_of({"x-death": [death("work", "delivery_limit")]})
    assert (letter.reason, letter.failed_at, letter.first_failed_at) == ("delivery_limit", NOON, NOON)


def test_a_copy_has_all_its_attempts_ahead() -> None:
    """And keeps whatever else it carries: its trace, its ids, a stranger's headers."""
    letter = letter_of(
        {
            "hk_reason": "exhausted",
            "hk_queue": "work",
            "hk_error": "no",
            "hk_error_type": "OSError",
            "hk_stack": "…",
            "hk_attempt": 8,
            "hk_version_waits": 2,
            "hk_first_failed_at": "2026-01-01T00:00:00Z",
            "hk_failed_at": "2026-01-01T12:00:00Z",
            "hk_generation": 2,
            "hk_event_id": "1",
            "x-request-id": "r",
            "x-death": [death("a")],
            "x-first-death-queue": "a",
        },
        message_type="a.b",
        app_id="api_service",
    )
    copy = letter.copy()
    assert copy.headers == {"hk_generation": 3, "hk_event_id": "1", "x-request-id": "r"}
    assert (copy.exchange, copy.routing_key, copy.body) == ("", "work", b"{}")
    assert (copy.message_type, copy.service) == ("a.b", "api_service")
    with pytest.raises(UnroutableError, match="nothing says"):
        replace(letter, target=None).copy()


# ── choosing and counting ────────────────────────────────────────────────────────────────────────


FAILED = letter_of(
    {
        "hk_reason": "exhausted",
        "hk_error_type": "builtins.OSError",
        "hk_failed_at": "2026-01-01T12:00:00Z",
        "hk_event_id": "1",
    },
    message_type="a.b",
)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"event_type": "a.b", "reason": "exhausted", "event_id": "1"}, True),
        ({"event_type": "a"}, False),
        ({"reason": "permanent"}, False),
        ({"event_id": "2"}, False),
        ({"error_type": "OSError"}, True),
        ({"error_type": "builtins.OSError"}, True),
        ({"error_type": "SError"}, False),
        ({"since": NOON}, True),
        ({"since": NOON.replace(tzinfo=None)}, True),
        ({"since": NOON + timedelta(seconds=1)}, False),
        ({"until": NOON}, False),
        ({"until": NOON + timedelta(seconds=1)}, True),
        ({"predicate": lambda letter: letter.body == b"{}"}, True),
        ({"predicate": lambda letter: letter.attempts > 0}, False),
    ],
)
def test_a_filter_wants_all_that_it_names(wanted: dict[str, Any], fits: bool) -> None:
    """One attribute that differs is enough to leave a dead letter out."""
    assert DeadLetterFilter(**wanted).matches(FAILED) is fits


def test_what_has_no_time_is_in_no_period() -> None:
    """A dead letter without a time matches only a filter without one."""
    assert not DeadLetterFilter(since=NOON).matches(letter_of())
    assert DeadLetterFilter().matches(letter_of())
    assert not DeadLetterFilter(error_type="OSError").matches(letter_of())


def test_a_group_spans_its_failures() -> None:
    """The largest first; what has no time doesn't count for the times."""
    groups = Groups()
    later = NOON + timedelta(hours=1)
    for failed_at, event_id in ((later, "1"), (None, "2"), (NOON, "3")):
        groups.add(replace(FAILED, failed_at=failed_at, first_failed_at=failed_at, event_id=event_id))
    groups.add(letter_of())
    first, second = groups.largest_first()
    assert (first.count, first.first_failed_at, first.last_failed_at, first.event_id) == (3, NOON, later, "3")
    assert (second.count, second.event_type) == (1, None)
    assert repr(groups) == "Groups(2)"


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_pace_is_steady_and_saves_nothing_up() -> None:
    """After a pause the next one comes at once, and the one after it at the interval again."""
    now, slept = 100.0, list[float]()

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    pace = Pace(2, clock=lambda: now, sleep=sleep)
    for _ in range(3):
        await pace.turn()
    now += 10
    for _ in range(2):
        await pace.turn()
    assert slept == [0.5, 0.5, 0.5]
    assert repr(pace) == "Pace(interval_seconds=0.5)"


async def test_no_pace_never_waits() -> None:
    """Without a rate, each turn comes at once."""

    async def sleep(_: float) -> None:
        pytest.fail("waited")

    pace = Pace(None, clock=lambda: 1.0, sleep=sleep)
    for _ in range(3):
        await pace.turn()


@pytest.mark.parametrize("rate", [0, -1, 0.001, float("nan")])
def test_a_rate_that_would_never_end_is_refused(rate: float) -> None:
    """Zero, a negative number and one below 0.01 per second are errors of the caller."""
    with pytest.raises(MisuseError, match=r"at least 0\.01"):
        Pace(rate)


@pytest.mark.parametrize("name", ["", "a" * 241])
def test_a_queue_has_a_name(name: str) -> None:
    """An empty name is refused, and one of more than 240 bytes."""
    with pytest.raises(MisuseError, match="1 to 240 bytes"):
        DeadLetters("amqp://localhost", name)


def test_a_toolkit_shows_its_queue_and_not_its_password() -> None:
    """The repr, which may be logged, has the name alone."""
    assert repr(DeadLetters("amqp://user:secret@host/", "a.dlq")) == "DeadLetters('a.dlq')"


@pytest.mark.parametrize(
    "moment", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "2026-06-30T23:59:60Z", "", "\x00"]
)
def test_a_time_that_utc_has_not_is_none(moment: str) -> None:
    """A stranger wrote the header: the letter is shown all the same, as are the others."""
    letter = letter_of({"hk_reason": "exhausted", "hk_failed_at": moment, "hk_first_failed_at": moment})
    assert (letter.reason, letter.failed_at, letter.first_failed_at) == ("exhausted", None, None)
    assert not DeadLetterFilter(since=NOON).matches(letter)


def test_times_are_shown_in_utc() -> None:
    """A header with another offset is converted."""
    letter = letter_of({"hk_reason": "exhausted", "hk_failed_at": "2026-01-01T13:00:00.5+01:00"})
    assert letter.failed_at == NOON + timedelta(milliseconds=500)


@pytest.mark.parametrize("prefix", ["cloudEvents_", "cloudEvents:", "ce-"])
def test_a_cloud_event_is_listed_by_its_own_type_and_id(prefix: str) -> None:
    """In both of its forms, and its copy keeps its content type."""
    attributes = {"specversion": "1.0", "type": "plant.grown", "source": "/garden", "id": "order-17"}
    binary = letter_of({f"{prefix}{name}": value for name, value in attributes.items()}, body=b'{"plant": 1}')
    structured = letter_of(
        body=orjson.dumps({**attributes, "data": {}}), content_type="application/cloudevents+json"
    )
    for letter in (binary, structured):
        assert (letter.event_type, letter.event_id) == ("plant.grown", "order-17")
    assert structured.copy().content_type == "application/cloudevents+json"


def test_a_cloud_event_is_found_by_the_id_of_the_log_too() -> None:
    """Consumers log the id that they derive; who has only that one finds the letter."""
    attributes = {"specversion": "1.0", "type": "plant.grown", "source": "/garden", "id": "order-17"}
    body = orjson.dumps({**attributes, "data": {}})
    derived = read_wire(body, {}).members["event_id"]
    letter = letter_of(body=body, content_type="application/cloudevents+json")
    assert letter.derived_id == derived != letter.event_id
    assert all(DeadLetterFilter(event_id=each).matches(letter) for each in ("order-17", derived))
    assert not DeadLetterFilter(event_id="order-18").matches(letter)


def test_an_id_that_consumers_take_as_it_is_stands_alone() -> None:
    """None doesn't match a letter without a derived id."""
    number = "0197e6b2-7a6c-7000-8000-000000000000"
    attributes = {"specversion": "1.0", "type": "plant.grown", "source": "/garden", "id": number}
    letter = letter_of(body=orjson.dumps({**attributes, "data": {}}))
    assert (letter.event_id, letter.derived_id) == (number, None)
    assert not DeadLetterFilter(event_id="None").matches(letter)
