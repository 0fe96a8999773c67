"""Declarations of streams: what they refuse at import, and how they compute a state."""

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.errors import DeclarationError, InvalidRequestError
from hybridkit.events import Event
from hybridkit.ids import new_id
from hybridkit.streams import Stream
from tests.helpers.accounts import ACCOUNTS, Account, Deposited, Withdrawn


class Counted(Event, type="counter.counted"):
    counter_id: str
    by: int = 1


class Renamed(Event, type="counter.renamed"):
    name: str


class OtherOrder(Event, type="counter.other_order", key="other_id"):
    counter_id: str
    other_id: str


class Counter(BaseModel):
    total: int = 0


class Needy(BaseModel):
    owner: str
    total: int = 0


def counters(**options: Any) -> Stream[Counter]:
    return Stream("counters", state=Counter, key="counter_id", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "Counters"}, "snake_case"),
        ({"state": Needy}, "give owner a default"),
        ({"snapshot_every": 0}, "snapshot_every"),
        ({"state_version": 0}, "state_version"),
    ],
)
def test_a_stream_that_contradicts_itself_is_refused(options: dict[str, Any], said: str) -> None:
    """A bad name, a state that can't begin and a number out of range are refused at import."""
    given: dict[str, Any] = {"name": "counters", "state": Counter, "key": "counter_id", **options}
    with pytest.raises(DeclarationError, match=said):
        Stream(given.pop("name"), **given)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Renamed, "no field 'counter_id'"),
        (OtherOrder, "in the order of 'other_id'"),
        (Event, "no declared event"),
        (Counter, "no declared event"),
        ("counted", "no declared event"),
    ],
)
def test_an_event_that_belongs_to_no_stream_is_refused(event: Any, said: str) -> None:
    """An event needs the stream's key, and is published in no other order."""
    with pytest.raises(DeclarationError, match=said):
        counters().apply(event)


def test_an_unpublished_stream_takes_events_of_any_order() -> None:
    """Where nothing is published, an event's own key doesn't matter."""
    stream = counters(publish=False)
    stream.apply(OtherOrder)(lambda counter, event: counter)
    assert stream.events == (OtherOrder,)


def test_an_event_has_one_function() -> None:
    """A second function for the same class is refused, as only one of them could be called."""
    stream = counters()
    stream.apply(Counted)(lambda counter, event: counter)
    with pytest.raises(DeclarationError, match="has a function already"):
        stream.apply(Counted)(lambda counter, event: counter)


async def waiting(counter: Counter, event: Counted) -> Counter:
    return counter


def generating(counter: Counter, event: Counted) -> Iterator[Counter]:
    yield counter


async def waiting_long(counter: Counter, event: Counted) -> AsyncIterator[Counter]:
    yield counter


def asking(counter: Counter, event: Counted, postgres: object) -> Counter:
    return counter


def choosing(counter: Counter, event: Counted = Counted(counter_id="a")) -> Counter:  # noqa: B008
    return counter


def taking_all(*args: Any) -> Counter:
    return Counter()


def taking_another(counter: Account, event: Counted) -> Counter:
    return Counter()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (waiting, "plain function"),
        (generating, "plain function"),
        (waiting_long, "plain function"),
        (asking, "and nothing else"),
        (choosing, "and nothing else"),
        (taking_all, "and nothing else"),
        (taking_another, "takes Account where it gets Counter"),
        ("counted", "no function"),
    ],
)
def test_a_function_that_can_not_be_pure_is_refused(function: Any, said: str) -> None:
    """What waits, yields or takes more than state and event can't compute a state again."""
    with pytest.raises(DeclarationError, match=said):
        counters().apply(Counted)(function)


def test_a_function_with_names_that_only_a_type_checker_knows_is_taken() -> None:
    """Annotations that can't be read at run time refuse nothing."""

    def counted(counter: "Unknown", event: Counted) -> Counter:  # type: ignore[name-defined] # noqa: F821
        return Counter(total=counter.total + event.by)

    stream = counters()
    stream.apply(Counted)(counted)
    assert stream.fold([Counted(counter_id="a", by=2)]).total == 2


def test_the_state_is_the_fold_of_the_events() -> None:
    """The functions are called in the order of the events, from the state of an empty stream or a given one."""
    account = new_id()
    events = [
        Deposited(account_id=account, amount=Decimal(10)),
        Withdrawn(account_id=account, amount=Decimal(3)),
    ]
    assert ACCOUNTS.fold([]) == Account()
    assert ACCOUNTS.fold(events) == Account(balance=Decimal(7), movements=2)
    assert ACCOUNTS.fold(events, state=Account(balance=Decimal(1))).balance == 8


def test_a_function_that_returns_no_state_is_named() -> None:
    """A function that changes the state in place and returns nothing is told so at its first event."""
    stream = counters()
    stream.apply(Counted)(lambda counter, event: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(DeclarationError, match="function of Counted returned NoneType"):
        stream.fold([Counted(counter_id="a")])


def test_an_event_without_a_function_is_never_skipped() -> None:
    """A fold stops at an event that the stream has no function for, and says how to declare one."""
    with pytest.raises(DeclarationError, match=r"@COUNTERS\.apply\(Counted\)"):
        counters().fold([Counted(counter_id="a")])


@pytest.mark.parametrize("id", ["", ".", "..", "a" * 256, "a\0b", "\ud800"])
def test_an_id_that_no_stream_can_have_is_refused(id: str) -> None:
    """An id has to fit into a URL, a primary key and an ordering key."""
    with pytest.raises(InvalidRequestError, match="no id of a stream"):
        counters().check_id(id)


def test_an_id_is_text() -> None:
    """UUIDs, numbers and natural keys are ids by their text."""
    assert counters().check_id(UUID(int=5)) == "00000000-0000-0000-0000-000000000005"
    assert counters().check_id(7) == "7"
    assert repr(counters()) == "Stream('counters', state=Counter)"
