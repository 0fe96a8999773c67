"""Problems in the language of their caller."""

import re
from collections.abc import Mapping
from typing import Any, Final

from hybridkit.adapters.localization import Translator, translator
from hybridkit.contract import Problem

_NUMBERS: Final = {
    "bytes_too_long": "max_length",
    "bytes_too_short": "min_length",
    "decimal_max_digits": "max_digits",
    "decimal_max_places": "decimal_places",
    "decimal_whole_digits": "whole_digits",
    "string_too_long": "max_length",
    "string_too_short": "min_length",
    "too_long": "max_length",
    "too_short": "min_length",
    "url_too_long": "max_length",
}
"""The numbers in the messages of pydantic's errors that decide on the plural form."""


_NUMBER: Final = re.compile(r"(?<![0-9])[0-9]{1,9}(?![0-9])")


def localized(problem: Problem) -> Problem:
    """Return a problem in the current language, as far as there are translations of its texts."""
    texts = translator()
    fields = [
        each.model_copy(update={"message": _told(texts, each.message)}) if each.message else each
        for each in problem.errors
    ]
    head, listed = problem.detail, _listed(problem)
    tail = ""
    if listed and head.endswith(listed):
        head = head.removesuffix(listed)
        tail = _listed(problem.model_copy(update={"errors": fields}))
    return problem.model_copy(
        update={
            "title": texts.pgettext("problem", problem.title),
            "detail": _told(texts, head) + tail,
            "errors": tuple(fields),
        }
    )


def _told(texts: Translator, message: str) -> str:
    """Return the translation of a text, also of one that has a number where its catalogue has `{number}`."""
    told = texts.gettext(message)
    number = _NUMBER.search(message)
    if told != message or number is None:
        return told
    template = f"{message[: number.start()]}{{number}}{message[number.end() :]}"
    told = texts.npgettext("counted", template, int(number[0]))
    return message if told == template else told.replace("{number}", number[0])


def _listed(problem: Problem) -> str:
    """Return what `InvalidRequestError` puts at the end of its message."""
    found = [f"{each.pointer or '/'}: {each.message or each.code}" for each in problem.errors]
    return f": {'; '.join(found)}" if found else ""


def validation_message(kind: str, values: Mapping[str, Any], *, english: str) -> str:
    """Return the message of one of pydantic's errors in the current language.

    Args:
        kind: the type of the error, such as `string_too_short`.
        values: the values in the message, as the error's `ctx` has them.
        english: pydantic's own message.
    """
    texts = translator()
    number = values.get(_NUMBERS.get(kind, ""))
    template = (
        texts.npgettext("validation", kind, number)
        if isinstance(number, int)
        else texts.pgettext("validation", kind)
    )
    if template == kind:
        return english
    told = {name: str(value).replace(" or ", texts.gettext(" or ")) for name, value in values.items()}
    try:
        return template.format_map(told)
    except (LookupError, ValueError, AttributeError):  # a catalogue may name what this error doesn't have
        return english
