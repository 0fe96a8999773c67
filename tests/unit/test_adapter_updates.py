"""An offset never passes an update whose handler has not finished."""

from hypothesis import given
from hypothesis import strategies as st

from hybridkit.adapters._telegram._updates import UpdateLog


def test_nothing_is_confirmed_before_anything_has_finished() -> None:
    """A running update has no offset."""
    log = UpdateLog()
    assert log.begin(7)
    assert log.offset is None
    assert log.unfinished


def test_finished_updates_are_confirmed_up_to_the_oldest_that_runs() -> None:
    """The offset moves on when that one has finished."""
    log = UpdateLog()
    for number in (7, 8, 9):
        log.begin(number)
    log.finish(7)
    log.finish(9)
    offsets = [log.offset]
    log.confirmed(8)
    offsets.append(log.offset)
    log.finish(8)
    offsets.append(log.offset)
    assert offsets == [8, None, 10]


def test_what_comes_again_while_it_is_known_does_not_run_again() -> None:
    """An id runs again only after Telegram was told to forget it."""
    log = UpdateLog()
    log.begin(7)
    log.begin(8)
    log.finish(8)
    assert not log.begin(7)
    assert not log.begin(8)
    log.finish(7)
    log.confirmed(9)
    assert log.begin(8)


def test_a_lower_number_than_the_last_is_taken_too() -> None:
    """After a week without updates Telegram goes on with a random id."""
    log = UpdateLog()
    log.begin(900)
    log.finish(900)
    log.confirmed(log.offset)
    assert log.offset is None
    assert log.begin(5)
    log.finish(5)
    assert log.offset == 6


def test_a_log_shows_what_runs_and_what_may_be_confirmed() -> None:
    """Its representation has the ids."""
    log = UpdateLog()
    log.begin(7)
    log.begin(8)
    log.finish(7)
    assert repr(log) == "UpdateLog(running=[8], shelved=[], confirmable=[7])"


def test_an_abandoned_update_is_not_confirmed() -> None:
    """The offset stays before it, and it does not count as running."""
    log = UpdateLog()
    log.begin(7)
    log.begin(8)
    log.finish(7)
    log.abandon(8)
    assert log.offset == 8
    assert not log.unfinished


def test_what_is_kept_elsewhere_holds_no_offset_up() -> None:
    """The offset passes a shelved update while it runs."""
    log = UpdateLog()
    for number in (7, 8, 9):
        log.begin(number)
    log.finish(8)
    assert log.mark_shelved([7]) == set()
    assert log.offset == 9
    log.confirmed(9)
    assert not log.begin(7), "it still runs"
    log.finish(7)
    assert log.offset is None


def test_what_finished_while_it_was_being_kept_is_told() -> None:
    """Finished updates are returned, so that they can be removed from the shelf."""
    log = UpdateLog()
    log.begin(7)
    log.begin(8)
    log.finish(7)
    assert log.mark_shelved([7, 8]) == {7}
    assert log.is_shelved(8)
    assert not log.is_shelved(7)


STEPS = st.sampled_from(["begin", "finish", "abandon", "keep", "confirm"])


@given(st.lists(st.tuples(st.integers(1, 20), STEPS)))
def test_whatever_the_order_no_offset_passes_an_update_that_would_be_lost(
    steps: list[tuple[int, str]],
) -> None:
    """Random steps never confirm an update that is neither finished nor shelved."""
    log, running, kept = UpdateLog(), set[int](), set[int]()
    for number, step in steps:
        if step == "begin" and log.begin(number):
            running.add(number)
        elif step in {"finish", "abandon"} and number in running:
            (log.finish if step == "finish" else log.abandon)(number)
            running.discard(number)
            kept.discard(number)
        elif step == "keep" and number in running:
            log.mark_shelved([number])
            kept.add(number)
        elif step == "confirm":
            log.confirmed(log.offset)
        assert log.offset is None or all(log.offset <= left for left in running - kept)
