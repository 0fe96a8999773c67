"""The ledger's arithmetic: what it finds lost, doubled, or gone with a deleted queue (see `tests/proofs`)."""

from pathlib import Path

from tests.proofs._books import (
    ORDERS,
    PREFETCHED,
    TASKS,
    WATCHERS,
    Book,
    Deletion,
    Line,
    balance,
    read_books,
)


def order(number: int, *, at: float = 1.0) -> list[Line]:
    """A confirmed event, with no effect yet."""
    return [Line(at, "plan", f"id{number}", "order"), Line(at + 0.5, "confirm", f"id{number}", "order")]


def effect(number: int, queue: str, key: str = "key") -> Line:
    return Line(9.0, "effect", f"id{number}", queue, key)


def test_a_message_with_its_effects_is_balanced() -> None:
    """An event has two consumers, a command one."""
    command = [Line(1, "plan", "id2", "task"), Line(2, "confirm", "id2", "task"), effect(2, TASKS)]
    books = balance([*order(1), effect(1, ORDERS), effect(1, WATCHERS), *command])
    assert books.holds
    assert (books.published, books.confirmed, books.effects) == (2, 2, 3)


def test_a_confirmed_message_without_effect_is_lost() -> None:
    """It is counted for each queue without an effect; a dead letter counts as one."""
    books = balance([*order(1), effect(1, ORDERS)])
    assert books.lost == [(WATCHERS, "id1")]
    assert not books.holds
    assert balance([*order(1), effect(1, WATCHERS), Line(9, "dead", "id1", ORDERS)]).holds


def test_what_was_never_confirmed_is_not_lost() -> None:
    """Its publisher knows that the outcome is unknown."""
    assert balance([Line(1, "plan", "id1", "order"), Line(2, "unknown", "id1", "order")]).holds


def test_two_effects_are_doubled_and_a_repeated_write_is_told_apart() -> None:
    """Two keys are two rows; one key twice is one row whose handler ran twice."""
    complete = [*order(1), effect(1, ORDERS), effect(1, WATCHERS)]
    assert balance([*complete, effect(1, ORDERS, "other key")]).doubled == [(ORDERS, "id1")]
    twice = balance([*complete, effect(1, ORDERS)])
    assert not twice.doubled
    assert twice.repeated == [(ORDERS, "id1")]


def test_an_effect_of_nothing_and_one_beside_a_dead_letter_are_one_too_many() -> None:
    """An effect needs a message, and a message ends once."""
    assert balance([effect(7, TASKS)]).doubled == [(TASKS, "id7")]
    complete = [*order(1), effect(1, ORDERS), effect(1, WATCHERS)]
    assert balance([*complete, Line(9, "dead", "id1", ORDERS)]).doubled == [(ORDERS, "id1")]


def test_messages_go_with_a_deleted_queue_and_no_others() -> None:
    """Those published without the queue count, and of earlier ones as many as it had."""
    deletion = Deletion(WATCHERS, at=10, healed_at=12, messages=1)
    while_away = [*order(1, at=9.8), effect(1, ORDERS)]
    assert balance(while_away, [deletion]).deleted_with_queue == 1
    before = [line for number in range(PREFETCHED + 2) for line in (*order(number), effect(number, ORDERS))]
    assert len(balance(before, [deletion]).lost) == 1
    after = [*order(1, at=12.5), effect(1, ORDERS)]
    assert balance(after, [deletion]).lost == [(WATCHERS, "id1")]
    of_another = [*order(1, at=9.8), effect(1, WATCHERS)]
    assert balance(of_another, [deletion]).lost == [(ORDERS, "id1")]


def test_books_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Details may have spaces."""
    with Book(tmp_path / "a.book") as book:
        book.write("plan", "id1", "order")
        book.write("unknown", "id1", "order", "no answer in time")
    [plan, unknown] = read_books(tmp_path)
    assert (plan.verb, plan.event_id, plan.where, plan.detail) == ("plan", "id1", "order", "")
    assert unknown.detail == "no answer in time"
    assert plan.at <= unknown.at
