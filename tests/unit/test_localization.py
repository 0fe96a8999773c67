"""Texts in the language of their reader: catalogues, the choice of a language, and hybridkit's own texts."""

# ruff: noqa: RUF001  # Russian

import asyncio
import threading
from gettext import GNUTranslations
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticKnownError
from pydantic_core.core_schema import ErrorType

from hybridkit.adapters import localization
from hybridkit.adapters._http._problems import http_problem
from hybridkit.adapters._languages._problems import _NUMBERS, validation_message
from hybridkit.adapters.fastapi import _TELLABLE
from hybridkit.adapters.localization import (
    OWN_CATALOGUES,
    Localization,
    gettext,
    ngettext,
    pgettext,
    translator,
)
from hybridkit.contract._titles import TITLES
from hybridkit.errors import DeclarationError

OWN = Localization()


def compiled(folder: Path, language: str, texts: dict[Any, Any]) -> None:
    """Write a catalogue as an application's build does."""
    catalogue = Catalog(locale=language.replace("-", "_"))
    for message, text in texts.items():
        context, _, bare = message.rpartition("|") if isinstance(message, str) else ("", "", message)
        catalogue.add(bare, text, context=context or None)
    file = folder / language / "LC_MESSAGES" / "messages.mo"
    file.parent.mkdir(parents=True)
    with file.open("wb") as content:
        write_mo(content, catalogue)


@pytest.fixture
def texts(tmp_path: Path) -> Localization:
    """A shop's texts in English, Russian, Brazilian Portuguese and simplified Chinese."""
    books = ("{number} book", "{number} books")
    compiled(
        tmp_path,
        "ru",
        {
            "Hello, {name}!": "Здравствуйте, {name}!",
            books: ("{number} книга", "{number} книги", "{number} книг"),
            "month|May": "май",
            "May": "Можно",
        },
    )
    compiled(tmp_path, "pt_BR", {"Hello, {name}!": "Olá, {name}!"})
    compiled(tmp_path, "zh_Hans", {"Hello, {name}!": "{name}，你好！"})
    return Localization(tmp_path)


# ── texts ────────────────────────────────────────────────────────────────────────────────────────


def test_a_text_is_in_the_language_of_the_block(texts: Localization) -> None:
    """Values are filled into the translation, and outside of the block the text is as in the source."""
    with texts.speaking("ru") as russian:
        assert gettext("Hello, {name}!", name="Ада") == "Здравствуйте, Ада!"
        assert (pgettext("month", "May"), gettext("May")) == ("май", "Можно")
        assert translator() is russian
        with texts.speaking("pt-BR"):
            assert gettext("Hello, {name}!", name="Ada") == "Olá, Ada!"
        assert translator() is russian
    assert gettext("Hello, {name}!", name="Ada") == "Hello, Ada!"
    assert pgettext("month", "{name}", name="May") == "May"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (0, "0 книг"),
        (1, "1 книга"),
        (2, "2 книги"),
        (5, "5 книг"),
        (11, "11 книг"),
        (21, "21 книга"),
        (104, "104 книги"),
    ],
)
def test_a_number_takes_its_form(texts: Localization, number: int, told: str) -> None:
    """Russian has three of them, English two."""
    with texts.speaking("ru"):
        assert ngettext("{number} book", "{number} books", number) == told
    assert ngettext("{number} book", "{number} books", 1) == "1 book"
    assert ngettext("{number} book of {who}", "{number} books of {who}", 2, who="Ada") == "2 books of Ada"


def test_a_text_without_translation_or_values_is_as_it_is(texts: Localization) -> None:
    """Braces mean themselves then, and the empty text is empty: gettext keeps a catalogue's head under it."""
    with texts.speaking("ru"):
        assert gettext("{not a name}") == "{not a name}"
        assert gettext("") == ""


def test_hybridkits_own_texts_are_in_every_language_of_an_application_that_they_have(
    texts: Localization,
) -> None:
    """Where an application has a language that hybridkit lacks, these are in English."""
    assert texts.translator("ru").pgettext("problem", "Not found") == "Не найдено"
    assert texts.translator("pt-BR").pgettext("problem", "Not found") == "Not found"
    assert Localization(source="ru").translator().pgettext("problem", "Not found") == "Не найдено"


def test_an_application_may_replace_hybridkits_texts(tmp_path: Path) -> None:
    """Its own catalogue is asked first."""
    compiled(tmp_path, "ru", {"problem|Not found": "Ничего нет"})
    assert Localization(tmp_path).translator("ru").pgettext("problem", "Not found") == "Ничего нет"


async def test_each_task_and_thread_has_its_own_language(texts: Localization) -> None:
    """A hundred tasks that speak two languages by turns don't disturb each other, nor do their threads."""
    told: list[tuple[str, str, str]] = []

    async def speak(language: str) -> None:
        with texts.speaking(language):
            for _ in range(10):
                await asyncio.sleep(0)
            here = gettext("Hello, {name}!", name="Ada")
            there = await asyncio.to_thread(gettext, "Hello, {name}!", name="Ada")
            told.append((language, here, there))

    await asyncio.gather(*(speak(("ru", "pt-BR")[number % 2]) for number in range(100)))
    russian, portuguese = "Здравствуйте, Ada!", "Olá, Ada!"
    assert set(told) == {("ru", russian, russian), ("pt-BR", portuguese, portuguese)}
    other: list[str] = []
    with texts.speaking("ru"):
        thread = threading.Thread(target=lambda: other.append(gettext("Hello, {name}!", name="Ada")))
        thread.start()
        thread.join()
    assert other == ["Hello, Ada!"]  # a bare thread has no context


# ── the choice ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (("ru",), "ru"),
        (("RU-ru",), "ru"),
        (("ru_RU",), "ru"),
        (("pt-br",), "pt-BR"),
        (("pt-BR-x-private",), "pt-BR"),
        (("zh-Hans-CN",), "zh-Hans"),
        (("pt",), "en"),
        (("de", None, "ru"), "ru"),
        ((None, ""), "en"),
        (("-",), "en"),
    ],
)
def test_a_tag_finds_the_closest_catalogue(
    texts: Localization, wanted: tuple[str | None, ...], found: str
) -> None:
    """The lookup of RFC 4647, section 3.4: subtags are left out from the end until there is a catalogue."""
    assert texts.translator(*wanted).language == found


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, "en"),
        ("", "en"),
        ("ru", "ru"),
        ("de, ru;q=0.5, en;q=0.9", "en"),
        ("en;q=0.1, ru;q=0.11", "ru"),
        ("ru;q=0, en", "en"),
        ("de-DE, *;q=0.5", "en"),
        ("ru-RU , en ; q=0.9", "ru"),
        ("nonsense;q=x, ru", "ru"),
        ("en;q=2, ru;q=1", "ru"),
        ("pt-BR;q=0.8,ru;q=0.8", "pt-BR"),
        ("ru" + " " * 1100, "en"),
    ],
)
def test_a_header_is_read_by_its_weights(texts: Localization, header: str | None, found: str) -> None:
    """RFC 9110, section 12.5.4; what can't be read is skipped, and a header that no browser sends is ignored."""
    assert texts.translator_for_header(header).language == found


@given(header=st.text(max_size=1100))
def test_no_header_does_harm(header: str) -> None:
    """Any text leads to one of the languages."""
    assert OWN.translator_for_header(header).language in OWN.languages


def test_the_default_may_be_another_than_the_sources(tmp_path: Path) -> None:
    """Users whose language isn't there get it."""
    compiled(tmp_path, "ru", {"May": "Можно"})
    texts = Localization(tmp_path, default="ru")
    assert (texts.translator("de").language, texts.translator("en").language) == ("ru", "en")
    assert repr(texts) == "Localization(en, ru)"
    assert repr(texts.translator("de")) == "Translator('ru')"
    assert Localization(source="ca_valencia", default="ru").languages[0] == "ca-valencia"
    with pytest.raises(DeclarationError, match="'de' is not there: catalogues are for en, ru"):
        Localization(tmp_path, default="de")


@pytest.mark.parametrize(
    ("language", "content", "problem"),
    [
        (None, b"", "there is no catalogue .*pybabel compile"),
        ("ru", b"", "ru.* can't be read"),
        ("ru", b"no catalogue", "ru.* can't be read"),
        ("2000", b"", "'2000' is no language"),
    ],
)
def test_a_folder_without_good_catalogues_is_refused(
    tmp_path: Path, language: str | None, content: bytes, problem: str
) -> None:
    """The error names the file, and what to do."""
    if language is not None:
        file = tmp_path / language / "LC_MESSAGES" / "messages.mo"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    with pytest.raises(DeclarationError, match=problem):
        Localization(tmp_path)


# ── hybridkit's own texts ────────────────────────────────────────────────────────────────────────


def test_the_shipped_catalogue_is_compiled_from_its_source() -> None:
    """After a change to the texts, `make catalogues` compiles them."""
    folder = OWN_CATALOGUES / "ru" / "LC_MESSAGES"
    made = BytesIO()
    with (folder / "hybridkit.po").open("rb") as source:
        write_mo(made, read_po(source, locale="ru"))
    made.seek(0)
    with (folder / "hybridkit.mo").open("rb") as shipped:
        assert texts_of(GNUTranslations(made)) == texts_of(GNUTranslations(shipped))


def texts_of(catalogue: Any) -> dict[Any, str]:
    """Return all texts of a catalogue, without its head."""
    return {message: text for message, text in catalogue._catalog.items() if message}


def titles() -> set[str]:
    """Return the titles that a problem may have."""
    answers = (http_problem(status, "", instance="/")[0] for status in HTTPStatus if status >= 400)
    return set(TITLES.values()) | {problem.title for problem in answers}


def test_every_title_of_a_problem_is_translated() -> None:
    """Of each error and each status, on every Python."""
    russian = OWN.translator("ru")
    assert [title for title in sorted(titles()) if russian.pgettext("problem", title) == title] == []


@pytest.mark.parametrize("kind", sorted(_TELLABLE & set(get_args(ErrorType))))
def test_every_message_about_a_field_is_translated(kind: str) -> None:
    """With the values that pydantic gives, in each form, and without any other."""
    values = values_of(kind)
    english = PydanticKnownError(kind, values or None).message()  # type: ignore[arg-type]
    with OWN.speaking("en"):
        assert validation_message(kind, values, english=english) == english
    with OWN.speaking("ru"):
        for number in (1, 2, 5):
            if kind in _NUMBERS:
                values[_NUMBERS[kind]] = number
            message = validation_message(kind, values, english=english)
            assert message != english
            assert "{" not in message


def values_of(kind: str) -> dict[str, Any]:
    """Return values for the names in the message of an error."""
    from pydantic_core._pydantic_core import list_all_errors

    example = next(each for each in list_all_errors() if each["type"] == kind)
    return {name: "x" if value == "" else 1 for name, value in (example["example_context"] or {}).items()}


def test_a_catalogue_that_names_what_an_error_does_not_have_leaves_it_in_english(tmp_path: Path) -> None:
    """A mistake of a translator's is no failure of the request."""
    compiled(tmp_path, "ru", {"validation|missing": "Нет {nothing}"})
    with Localization(tmp_path).speaking("ru"):
        assert validation_message("missing", {}, english="Field required") == "Field required"


def test_alternatives_are_joined_in_the_language() -> None:
    """Pydantic lists them in English."""
    with OWN.speaking("ru"):
        told = validation_message("literal_error", {"expected": "'a', 'b' or 'c'"}, english="")
    assert told == "Допустимые значения: 'a', 'b' или 'c'"


def test_the_module_names_what_it_offers() -> None:
    """All of it is documented."""
    assert all(getattr(localization, name).__doc__ for name in localization.__all__)
