"""Texts for users in their language, from gettext catalogues, for an API and a bot alike.

```python
TEXTS = Localization(Path(__file__).parent / "locales")

app = create_app(ApiSettings, title="Shop", localization=TEXTS)       # by Accept-Language
run_bot(dispatcher, BotSettings, localization=TEXTS)                  # by Telegram's language_code

async def basket(texts: Texts) -> str:                                # a route, or a bot's handler
    return texts.ngettext("{number} book", "{number} books", 3)       # 3 книги
```

hybridkit's own texts, such as the titles of problems and the messages about invalid fields, are in English and
Russian. Catalogues are compiled at build time, by Babel for example; only the standard library reads them.

https://docs.python.org/3/library/gettext.html
"""

import gettext as gnu
import re
import struct
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from functools import lru_cache
from pathlib import Path
from typing import Final

from hybridkit.errors import DeclarationError

__all__ = ["Localization", "Translator", "gettext", "ngettext", "pgettext", "translator"]

OWN_DOMAIN: Final = "hybridkit"
OWN_CATALOGUES: Final = Path(__file__).parent / "_locales"
OWN_LANGUAGES: Final = ("en", "ru")

MAX_HEADER_CHARACTERS: Final = 1024
"""A longer `Accept-Language` is ignored, as no browser sends one."""

_TAG: Final = re.compile(r"[A-Za-z]{1,8}([-_][A-Za-z0-9]{1,8})*")
# https://www.rfc-editor.org/rfc/rfc9110#section-12.5.4
_PREFERENCE: Final = re.compile(
    r"\s*(?P<tag>[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*)\s*(?:;\s*[qQ]=(?P<weight>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*)?"
)


class Translator:
    """The texts of one language.

    A text without a translation is returned as it is. `{names}` in the translated text are filled in, so that a
    translator may put them elsewhere: pass values by name, and no f-string, which no catalogue can have.

    Args:
        language: the tag of the language, such as `ru` or `pt-BR`.
        catalogues: the translations.
    """

    def __init__(self, language: str, catalogues: gnu.NullTranslations) -> None:
        self.language = language
        self._catalogues = catalogues

    def __repr__(self) -> str:
        return f"Translator({self.language!r})"

    def gettext(self, message: str, **values: object) -> str:
        """Return a text in this language.

        Args:
            message: the text in the language of the source.
            values: the values of its `{names}`; braces in a text without values mean themselves.
        """
        text = (
            self._catalogues.gettext(message) if message else ""
        )  # of the empty text, gettext tells about itself
        return text.format_map(values) if values else text

    def ngettext(self, singular: str, plural: str, number: int, **values: object) -> str:
        """Return the form of a text that the language uses with a number.

        Args:
            singular: the text for one in the language of the source.
            plural: the text for several in the language of the source.
            number: the number, which `{number}` in the text shows.
            values: the values of other `{names}`.
        """
        text = self._catalogues.ngettext(singular, plural, number)
        return text.format_map({"number": number, **values})

    def pgettext(self, context: str, message: str, **values: object) -> str:
        """Return a text in this language, which other languages may translate differently in another context.

        Args:
            context: what tells this text from an equal one, such as `month` for `May`.
            message: the text in the language of the source.
            values: the values of its `{names}`.
        """
        text = self._catalogues.pgettext(context, message)
        return text.format_map(values) if values else text

    def npgettext(self, context: str, message: str, number: int) -> str:
        """Return the form that the language uses with a number, of a text with a context; nothing is filled in."""
        return self._catalogues.npgettext(context, message, message, number)


class Localization:
    """The languages of an application.

    Args:
        directory: the folder with `LANGUAGE/LC_MESSAGES/DOMAIN.mo`; without one there are hybridkit's texts alone.
        domain: the name of the catalogues.
        source: the language of the texts in the source code, which needs no catalogue.
        default: the language for users none of whose languages is there; by default that of the source.

    Raises:
        DeclarationError: the folder has no catalogue, one can't be read, or the default language isn't there.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        domain: str = "messages",
        source: str = "en",
        default: str | None = None,
    ) -> None:
        found: dict[str, gnu.NullTranslations] = {source: gnu.NullTranslations()}
        if directory is None:
            found |= {language: gnu.NullTranslations() for language in OWN_LANGUAGES}
        else:
            found |= _read(Path(directory), domain)
        for language, catalogue in found.items():
            catalogue.add_fallback(_own_catalogue(language))
        self._translators = {
            _folded(language): Translator(_shown(language), catalogue)
            for language, catalogue in found.items()
        }
        if _folded(default or source) not in self._translators:
            raise DeclarationError(
                f"the default language {default!r} is not there: catalogues are for {', '.join(self.languages)}"
            )
        self._default = self._translators[_folded(default or source)]
        # Headers come from strangers: the cache has an end.
        self._of_header: Callable[[str], Translator] = lru_cache(maxsize=512)(self._find_for_header)

    def __repr__(self) -> str:
        return f"Localization({', '.join(self.languages)})"

    @property
    def languages(self) -> tuple[str, ...]:
        """The tags of the languages."""
        return tuple(each.language for each in self._translators.values())

    def translator(self, *languages: str | None) -> Translator:
        """Return the texts of the first language that is there, or else of the default one.

        A language stands for its less specific ones: `pt-BR` finds `pt` where there is no `pt-BR`
        (https://www.rfc-editor.org/rfc/rfc4647#section-3.4).

        Args:
            languages: tags such as `ru`, `pt-br` or `zh_Hans_CN`, the preferred one first; None is skipped.
        """
        for language in languages:
            tag = _folded(language or "")
            while tag:
                if tag in self._translators:
                    return self._translators[tag]
                tag = tag.rpartition("-")[0]
                if tag[-2:-1] == "-":  # a single character introduces what follows, and goes with it
                    tag = tag[:-2]
        return self._default

    def translator_for_header(self, accept_language: str | None) -> Translator:
        """Return the texts of the language that an `Accept-Language` prefers, by its weights.

        Args:
            accept_language: the value of the header; what can't be read in it is skipped.
        """
        if not accept_language or len(accept_language) > MAX_HEADER_CHARACTERS:
            return self.translator()
        return self._of_header(accept_language)

    def _find_for_header(self, accept_language: str) -> Translator:
        found = [_PREFERENCE.fullmatch(part) for part in accept_language.split(",")]
        weighed = [(float(each["weight"] or 1), each["tag"]) for each in found if each is not None]
        wanted = sorted((each for each in weighed if each[0] > 0), key=lambda each: -each[0])
        return self.translator(*(tag for _, tag in wanted))

    @contextmanager
    def speaking(self, *languages: str | None) -> Generator[Translator]:
        """Use a language inside the block, and in the tasks and threads that are started there.

        Args:
            languages: as for `translator`.
        """
        chosen = self.translator(*languages)
        with bind_translator(lambda: chosen):
            yield chosen


_bound: ContextVar[Callable[[], Translator] | None] = ContextVar("hybridkit_translator", default=None)


def bind_translator(choose: Callable[[], Translator]) -> AbstractContextManager[None]:
    """Use the texts that a function returns inside the block; it is called when the first text is needed."""
    return _Binding(choose)


class _Binding(AbstractContextManager[None]):
    """The context manager of `bind_translator`: a class, as a generator costs each request more."""

    __slots__ = ("_choose", "_token")

    _token: Token[Callable[[], Translator] | None]

    def __init__(self, choose: Callable[[], Translator]) -> None:
        self._choose = choose

    def __enter__(self) -> None:
        self._token = _bound.set(self._choose)

    def __exit__(self, *_: object) -> None:
        _bound.reset(self._token)


def translator() -> Translator:
    """Return the texts of the current language: of the request, the update, or `Localization.speaking`.

    Outside of these they are hybridkit's in English, and every other text is returned as it is.
    """
    choose = _bound.get()
    return _without_language() if choose is None else choose()


def gettext(message: str, **values: object) -> str:
    """Return a text in the current language, as `Translator.gettext` does."""
    return translator().gettext(message, **values)


def ngettext(singular: str, plural: str, number: int, **values: object) -> str:
    """Return the form of a text for a number in the current language, as `Translator.ngettext` does."""
    return translator().ngettext(singular, plural, number, **values)


def pgettext(context: str, message: str, **values: object) -> str:
    """Return a text with a context in the current language, as `Translator.pgettext` does."""
    return translator().pgettext(context, message, **values)


@lru_cache(maxsize=1)
def _without_language() -> Translator:
    return Translator("en", gnu.NullTranslations())


def _read(directory: Path, domain: str) -> Mapping[str, gnu.NullTranslations]:
    """Read all catalogues of a folder.

    Raises:
        DeclarationError: there is none, or one can't be read.
    """
    found: dict[str, gnu.NullTranslations] = {}
    for file in sorted(directory.glob(f"*/LC_MESSAGES/{domain}.mo")):
        language = file.parent.parent.name
        if not _TAG.fullmatch(language):
            raise DeclarationError(f"{language!r} is no language: {file}")
        try:
            with file.open("rb") as content:
                found[language] = gnu.GNUTranslations(content)
        except (OSError, ValueError, struct.error) as error:  # a wrong encoding is a ValueError too
            raise DeclarationError(f"the catalogue {file} can't be read: {error}") from error
    if not found:
        raise DeclarationError(
            f"there is no catalogue {directory}/LANGUAGE/LC_MESSAGES/{domain}.mo: compile them with"
            f" `pybabel compile -d {directory} -D {domain}`"
        )
    return found


def _own_catalogue(language: str) -> gnu.NullTranslations:
    """Return hybridkit's texts in a language; those in the source code for any without a catalogue."""
    base = _folded(language).partition("-")[0]
    return gnu.translation(OWN_DOMAIN, OWN_CATALOGUES, [base], fallback=True)


def _folded(language: str) -> str:
    return language.replace("_", "-").lower()


def _shown(language: str) -> str:
    """Return a tag as it is written: `pt_br` as `pt-BR` (https://www.rfc-editor.org/rfc/rfc5646#section-2.1.1)."""
    first, *others = _folded(language).split("-")
    return "-".join([first, *(_cased(part) for part in others)])


def _cased(subtag: str) -> str:
    match len(subtag):
        case 2:
            return subtag.upper()
        case 4:
            return subtag.title()
        case _:
            return subtag
