"""Updates that can't be parsed, and answers that are none, do not affect the others."""

from collections.abc import Mapping
from typing import Any

import pytest
from aiogram import Dispatcher

from hybridkit.observability import metrics
from tests.helpers.bots import ADA, World, dispatcher, lines, texts, world

__all__ = ["dispatcher", "lines", "world"]

pytestmark = pytest.mark.usefixtures("lines")

SECRET = "what a person has written"
TOO_NEW_MESSAGE = {
    "message": {
        "message_id": 1,
        "date": 1_420_070_400,
        "chat": {"id": 5, "type": "private"},
        "text": SECRET,
        "forward_origin": {"type": "hidden_user", "date": 1_420_070_400},
    }
}
TOO_NEW: Mapping[str, dict[str, Any]] = {
    "a message of a later form": TOO_NEW_MESSAGE,
    "a type of update that is not known": {"telepathy": {"thought": SECRET}},
    "no type at all": {},
    "a known type that is null": {"message": None},
    "half a surrogate pair": {"message": {**TOO_NEW_MESSAGE["message"], "text": "\ud800"}},
    "a text where an object should be": {"message": SECRET},
    "a moment that no calendar has": {
        "message": {"message_id": 1, "date": 10**30, "chat": {"id": 5, "type": "private"}}
    },
}


async def test_updates_that_can_not_be_read_are_skipped_among_the_others(
    world: World, dispatcher: Dispatcher, lines: list[Any]
) -> None:
    """Each is logged once and confirmed, and those around it are handled once."""
    async with world.polling(dispatcher) as polling:
        last = 0
        for update in TOO_NEW.values():
            world.telegram.push_update(update)
            last = world.telegram.push_text("good", from_user=ADA)
        await world.telegram.wait_for_messages(len(TOO_NEW))
        await world.telegram.wait_until_confirmed(last)
        await polling.probe()
    skipped = [line for line in lines if "can't be read" in line["event"]]
    assert texts(world.telegram) == ["good"] * len(TOO_NEW)
    assert [line["telegram.update_id"] for line in skipped] == [1001 + 2 * n for n in range(len(TOO_NEW))]
    assert [line["telegram.update_type"] for line in skipped][:3] == ["message", "telepathy", "unknown"]
    assert SECRET not in str(lines)


async def test_a_crowd_of_unreadable_updates_is_passed(world: World, dispatcher: Dispatcher) -> None:
    """More than Telegram delivers at once are counted, and the update behind them is handled."""
    for _ in range(250):
        world.telegram.push_update(TOO_NEW_MESSAGE)
    world.telegram.push_text("good", from_user=ADA)
    skipped = metrics.bot_updates_skipped.labels("message")
    before = skipped._value.get()
    async with world.polling(dispatcher):
        await world.telegram.wait_for_messages(1)
    assert skipped._value.get() - before == 250


async def test_what_is_no_update_at_all_is_logged_once_and_passed(
    world: World, dispatcher: Dispatcher, lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an id it is delivered until an update behind it is confirmed."""
    oddities: list[Any] = [None, 7, SECRET, [SECRET], {"message": {}}, {"update_id": "7"}, {"update_id": -3}]
    asked = world.telegram._get_updates

    async def with_oddities(params: Mapping[str, str]) -> list[Any]:
        return [*oddities, *await asked({**params, "timeout": "0"})]

    monkeypatch.setattr(world.telegram, "_get_updates", with_oddities)
    async with world.polling(dispatcher) as polling:
        world.telegram.push_text("good", from_user=ADA)
        await world.telegram.wait_for_messages(1)
        await polling.probe()
        polls = world.telegram.calls.count("getUpdates")
        await world.telegram.wait_for_calls("getUpdates", count=polls + 2)
    assert len([line for line in lines if "can't be read" in line["event"]]) == len(oddities)
    assert SECRET not in str(lines)


@pytest.mark.parametrize("answer", [None, {"message": 1}, "text"])
async def test_an_answer_that_is_no_list_does_not_end_the_asking(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    """The bot polls again, and handles the next update."""
    asked, odd = world.telegram._get_updates, [answer]

    async def first_odd(params: Mapping[str, str]) -> Any:
        return odd.pop() if odd else await asked(params)

    monkeypatch.setattr(world.telegram, "_get_updates", first_odd)
    async with world.polling(dispatcher):
        world.telegram.push_text("good", from_user=ADA)
        await world.telegram.wait_for_messages(1)


async def test_numbers_may_jump(world: World, dispatcher: Dispatcher) -> None:
    """Gaps between update ids, as after a quiet week, do not delay a confirmation."""
    async with world.polling(dispatcher):
        for jump in (1, 5000, 3):
            world.telegram._updates._next_id += jump
            last = world.telegram.push_text("good", from_user=ADA)
        await world.telegram.wait_until_confirmed(last)
    assert texts(world.telegram) == ["good"] * 3
