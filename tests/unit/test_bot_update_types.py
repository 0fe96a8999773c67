"""Every type of update that Telegram has reaches its handler, by polling and by webhook, in an order of its own."""

import json
from typing import Any

import pytest
from aiogram import Bot
from aiogram.types import Update

from hybridkit.adapters._telegram._reading import chat_of, read_update
from tests.helpers import until
from tests.helpers.bot_updates import UPDATES, noting_dispatcher
from tests.helpers.bots import World, lines, world

__all__ = ["lines", "world"]

pytestmark = pytest.mark.usefixtures("lines")

BOT = Bot("42:token")


def test_no_type_is_forgotten() -> None:
    """The types of these tests are those that the library knows."""
    assert set(UPDATES) == set(Update.model_fields) - {"update_id"}


@pytest.mark.parametrize("name", UPDATES)
def test_each_type_is_handled_in_order_with_its_chat_or_user(name: str) -> None:
    """The key is the chat, the user where there is no chat, or the poll."""
    content, key = UPDATES[name]
    update = read_update({"update_id": 1, name: content}, BOT)
    assert update is not None
    assert update.event_type == name
    assert chat_of(update) == key


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("callback_query", {"message": None, "inline_message_id": "1"}, 7),
        ("poll_answer", {"user": None, "voter_chat": {"id": -5, "type": "channel"}}, -5),
        ("message_reaction", {"user": None, "actor_chat": {"id": -5, "type": "channel"}}, -100),
    ],
)
def test_variants_of_a_type_have_their_own_key(name: str, changes: dict[str, Any], key: object) -> None:
    """A button below an inline message has no chat, and who answers or reacts may be a chat."""
    content = {part: value for part, value in (UPDATES[name][0] | changes).items() if value is not None}
    update = read_update({"update_id": 1, name: content}, BOT)
    assert update is not None
    assert chat_of(update) == key


@pytest.mark.parametrize("by", ["polling", "webhook"])
async def test_each_type_reaches_its_handler(world: World, by: str) -> None:
    """Telegram is asked for all of them, also for those that it only sends when they are named."""
    seen: list[str] = []
    dispatcher = noting_dispatcher(seen)
    async with world.polling(dispatcher) if by == "polling" else world.webhook(dispatcher):
        method = "getUpdates" if by == "polling" else "setWebhook"
        await world.telegram.wait_for_calls(method)
        assert set(json.loads(world.telegram.parameters_of(method)[0]["allowed_updates"])) == set(UPDATES)
        for name, (content, _) in UPDATES.items():
            world.telegram.push_update({name: content})
        await until(lambda: len(seen) == len(UPDATES))
    assert set(seen) == set(UPDATES)
