"""An API and a bot speak the language of whoever asks."""

# ruff: noqa: RUF001  # Russian

from typing import Annotated, Any, Literal

import pytest
from aiogram import Dispatcher
from aiogram.types import Message
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from hybridkit.adapters._languages._problems import localized
from hybridkit.adapters._languages._requests import RequestLanguage
from hybridkit.adapters.dependencies import Texts
from hybridkit.adapters.fastapi import create_app
from hybridkit.adapters.localization import Localization, Translator, ngettext, translator
from hybridkit.contract import Problem
from hybridkit.errors import NotFoundError, RuleViolationError
from hybridkit.testing import TelegramUser
from tests.helpers.apis import Settings, serving
from tests.helpers.bots import ADA, World, texts, world

__all__ = ["world"]

RUSSIAN = {"accept-language": "ru-RU, en;q=0.5"}


class NewBook(BaseModel):
    title: Annotated[str, Field(max_length=5)]
    tags: Annotated[list[str], Field(min_length=2)] = ["a", "b"]
    kind: Literal["novel", "poem"] = "novel"
    pages: Annotated[int, Field(ge=1)] = 1


def made(**options: Any) -> FastAPI:
    app = create_app(Settings, title="Books", **options)

    @app.post("/books")
    async def create(body: NewBook, texts: Texts) -> str:
        return texts.language

    @app.get("/language")
    def language() -> str:  # in a thread
        return translator().language

    @app.get("/plain")
    async def plain() -> str:
        return "no text"

    @app.get("/gone")
    async def gone() -> None:
        raise NotFoundError("the book is not there")

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418)

    @app.get("/rule")
    async def rule() -> None:
        raise RuleViolationError("no more than three")

    @app.get("/failed")
    async def failed() -> None:
        raise ZeroDivisionError

    return app


async def test_a_route_gets_the_texts_of_its_callers_language() -> None:
    """Injected by type, or by a function, in a thread too; caches learn that the answer depends on it."""
    async with serving(made()) as client:
        answer = await client.post("/books", json={"title": "Emma"}, headers=RUSSIAN)
        assert answer.json() == "ru"
        assert (answer.headers["content-language"], answer.headers["vary"]) == ("ru", "Accept-Language")
        assert (await client.get("/language", headers=RUSSIAN)).json() == "ru"
        assert (await client.get("/language", headers={"accept-language": "de"})).json() == "en"
        assert "content-language" not in (await client.get("/plain", headers=RUSSIAN)).headers


async def test_problems_have_titles_in_the_callers_language() -> None:
    """The code, for programs, stays; a detail of the application's own is translated by its catalogue or not at all."""
    async with serving(made()) as client:
        found = (await client.get("/gone", headers=RUSSIAN)).json()
        assert (found["title"], found["code"]) == ("Не найдено", "NOT_FOUND")
        assert found["detail"] == "the book is not there"
        missing = await client.get("/nowhere", headers=RUSSIAN)
        assert (missing.json()["title"], missing.json()["detail"]) == ("Не найдено", "такой страницы нет")
        assert missing.headers["content-language"] == "ru"
        assert (await client.get("/teapot", headers=RUSSIAN)).json()["title"] == "Я чайник"
        assert (await client.get("/teapot", headers=RUSSIAN)).json()["code"] == "IM_A_TEAPOT"
        assert (await client.get("/rule", headers=RUSSIAN)).json()["title"] == "Нарушено правило"
        assert (await client.get("/failed", headers=RUSSIAN)).json()["title"] == "Внутренняя ошибка сервера"
        assert (await client.get("/gone")).json()["title"] == "Not found"
        head = {"accept-language": "ru", "x-request-timeout": "nonsense"}
        assert (await client.get("/gone", headers=head)).json()["title"] == "Неверный заголовок"


async def test_messages_about_fields_are_in_the_callers_language() -> None:
    """With the right plural forms, and in the detail that lists them."""
    async with serving(made()) as client:
        body = {"title": "Middlemarch", "tags": ["one"], "kind": "drama", "pages": 0, "extra": 1}
        problem = (await client.post("/books", json=body, headers=RUSSIAN)).json()
        assert {each["pointer"]: each["message"] for each in problem["errors"]} == {
            "/title": "Не больше 5 символов",
            "/tags": "Нужно хотя бы 2 элемента",
            "/kind": "Допустимые значения: 'novel' или 'poem'",
            "/pages": "Нужно число не меньше 1",
        }
        assert problem["title"] == "Запрос заполнен неверно"
        assert problem["detail"].startswith("запрос заполнен неверно: /title: Не больше 5 символов; ")
        english = (await client.post("/books", json=body)).json()
        assert english["detail"].startswith("the request does not fit: /title: String should have at most 5")
        nothing = (
            await client.post("/books", content=b"{", headers=RUSSIAN | {"content-type": "application/json"})
        ).json()
        assert nothing["errors"][0]["message"] == "тело запроса — не JSON"


@pytest.mark.parametrize(
    ("english", "russian"),
    [
        ("it has fewer than 8 characters", "в нём меньше 8 символов"),
        ("it has fewer than 21 characters", "в нём меньше 21 символа"),
        ("choose another password", "выберите другой пароль"),
        ("it has 8 wheels", "it has 8 wheels"),
        ("it has fewer than 1234567890 characters", "it has fewer than 1234567890 characters"),
        ("", ""),
    ],
)
def test_a_detail_with_a_number_is_translated(english: str, russian: str) -> None:
    """In the form that the number takes; a text without a translation stays."""
    problem = Problem(title="Rejected", status=400, code="REJECTED", detail=english)
    with Localization().speaking("ru"):
        assert localized(problem).detail == russian


def test_the_language_of_a_request_is_chosen_once() -> None:
    """When its first text is needed; also where there is no response to tell of it, as in a WebSocket."""
    scope: dict[str, Any] = {"type": "websocket", "headers": [(b"accept-language", b"ru")]}
    language = RequestLanguage(Localization(), scope, response_headers="headers_of_response")
    assert repr(language) == "RequestLanguage(None)"
    first = language()
    scope["headers"] = []
    assert language() is first
    assert repr(language) == "RequestLanguage(Translator('ru'))"


async def test_a_data_service_speaks_english() -> None:
    """Its callers are programs of ours, whose logs have one language."""
    async with serving(made(internal=True)) as client:
        answer = await client.get("/gone", headers=RUSSIAN)
        assert answer.json()["title"] == "Not found"
        assert "content-language" not in answer.headers


async def test_a_bots_handler_speaks_its_users_language(world: World) -> None:
    """By the language that Telegram tells; each of two people gets their own."""
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def answer(message: Message, given: Translator, texts: Texts) -> None:
        assert given is texts
        await message.answer(f"{given.language}: {ngettext('{number} book', '{number} books', 2)}")

    async with world.polling(dispatcher):
        world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_for_messages(1)
        world.telegram.push_text("привет", from_user=TelegramUser(id=8, language_code="ru"))
        await world.telegram.wait_for_messages(2)
        world.telegram.push_text("?", from_user=TelegramUser(id=9, language_code=None))
        await world.telegram.wait_for_messages(3)
    assert [text.partition(":")[0] for text in texts(world.telegram)] == ["en", "ru", "en"]
