"""Values that a model would change or drop without an error: each is refused with a pointer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from math import isfinite
from typing import Any, Final, cast, get_args
from uuid import UUID

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hybridkit._syntax import escape_token
from hybridkit.codec import InexactFloat
from hybridkit.dataservice._store._members import fields_by_member
from hybridkit.errors import FieldProblem

MAX_INTEGER_DIGITS: Final = 131_072
MAX_FRACTION_DIGITS: Final = 16_383
"""Of PostgreSQL's `numeric`, beyond which its driver makes another number of it, and of every store's decimals:
https://www.postgresql.org/docs/current/datatype-numeric.html"""
DECIMALS: Final = (
    f"decimals with at most {MAX_INTEGER_DIGITS} digits before the point and {MAX_FRACTION_DIGITS} after it"
)

FLOAT_DIGITS: Final = 15
"""The decimal digits that a float keeps for sure, https://en.cppreference.com/w/c/types/limits."""
_DECIMAL: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def losses(given: Any, kept: Any, at: str = "") -> Iterator[FieldProblem]:
    """Yield a problem for each value that the model keeps in another form than it was sent.

    Args:
        given: the value as it was sent, from `decode_numbers`.
        kept: the value as the model has it.
        at: the JSON pointer of the value.
    """
    if kept is None or type(kept) is str:  # most values; a model keeps them or refuses them
        return
    match kept:
        case BaseModel():
            yield from _in_model(given, kept, at)
        case _ if is_dataclass(kept) and isinstance(given, Mapping):
            members = {member.name: getattr(kept, member.name) for member in fields(kept)}
            yield from _in_mapping({**dict.fromkeys(members), **given}, members, at)
        case Mapping():
            yield from _in_mapping(given, cast("Mapping[Any, Any]", kept), at)
        case list() | tuple() if isinstance(given, list):
            pairs = zip(cast("list[Any]", given), cast("Sequence[Any]", kept), strict=False)
            for index, (sent, member) in enumerate(pairs):
                yield from losses(sent, member, f"{at}/{index}")
        case _:
            yield from _in_scalar(given, kept, at)


def _in_scalar(given: Any, kept: Any, at: str) -> Iterator[FieldProblem]:
    match kept:
        case float() if not isfinite(kept):
            yield FieldProblem(at, "finite_number", "a number is finite")
        case float() if isinstance(given, int) and not is_integer(kept, given):
            yield FieldProblem(at, "inexact_number", "no float is this integer")
        case Decimal():
            yield from _in_decimal(given, kept, at)
        case int() if isinstance(given, bool | float) and type(kept) is not type(given) and kept == given:
            yield FieldProblem(at, "int_type", "an integer has no fraction, and is neither true nor false")
        case int() if not -(2**63) <= kept < 2**64 and "/" in at[1:]:
            yield FieldProblem(at, "int_size", "an integer in a document has 64 bits")
        case UUID() if isinstance(given, str) and given.lower() != str(kept):
            yield FieldProblem(at, "uuid_parsing", "a UUID has five groups of hexadecimal digits")
        case datetime() | date() if isinstance(given, str) and not _DAY.match(given):
            yield FieldProblem(at, "datetime_parsing", "a time is text by RFC 3339")
        case _:
            return


def is_integer(value: float, number: int) -> bool:
    """Return whether a float is that integer, by its value or as it is written."""
    return int(value) == number or Decimal(repr(value)) == number


def is_exact(value: Decimal) -> bool:
    """Return whether every store keeps the decimal as it is."""
    exponent = value.as_tuple().exponent
    if isinstance(exponent, str):  # NaN and the infinities
        return False
    return value.adjusted() < MAX_INTEGER_DIGITS and -exponent <= MAX_FRACTION_DIGITS


def _in_model(given: Any, kept: BaseModel, at: str) -> Iterator[FieldProblem]:
    if not isinstance(given, Mapping):
        return
    model = type(kept)
    names = fields_by_member(model)
    for sent, member in cast("Mapping[str, Any]", given).items():
        if sent in names:
            value = getattr(kept, names[sent])
            if value is None or type(value) is str:
                continue
            pointer = f"{at}/{_token(sent)}"
            yield from losses(member, value, pointer)
            if _is_long_document(model.model_fields[names[sent]], value):
                yield FieldProblem(pointer, "int_size", "an integer in a document has 64 bits")
        elif model.model_config.get("extra", "ignore") == "ignore" and not _reshapes(model):
            yield FieldProblem(f"{at}/{_token(sent)}", "extra_forbidden", "there is no such member")


def _in_mapping(given: Any, kept: Mapping[Any, Any], at: str) -> Iterator[FieldProblem]:
    if not isinstance(given, Mapping):
        return
    sent = cast("Mapping[str, Any]", given)
    if len(sent) > len(kept):  # a dictionary of declared members takes no others
        yield from (
            FieldProblem(f"{at}/{_token(name)}", "extra_forbidden", "there is no such member")
            for name in sent
            if name not in kept
        )
        return
    for (name, one), (own, other) in zip(sent.items(), kept.items(), strict=False):
        if type(own) is int and str(own) != name:
            yield FieldProblem(
                f"{at}/{_token(name)}", "int_parsing", "an integer has no zeros or blanks before it"
            )
        yield from losses(one, kept.get(name, other), f"{at}/{_token(name)}")


def _in_decimal(given: Any, kept: Decimal, at: str) -> Iterator[FieldProblem]:
    if not is_exact(kept):
        yield FieldProblem(at, "finite_number", f"these are {DECIMALS}")
    elif isinstance(given, str) and not _DECIMAL.fullmatch(given):
        yield FieldProblem(at, "decimal_parsing", "a decimal has the digits 0 to 9, a point and an exponent")
    elif isinstance(given, InexactFloat) or (
        isinstance(given, float) and len(kept.normalize().as_tuple().digits) > FLOAT_DIGITS
    ):
        yield FieldProblem(at, "decimal_parsing", "a decimal of so many digits is exact as text only")


def _is_long_document(info: FieldInfo, kept: Any) -> bool:
    """Return whether the value is an integer over 64 bits in a field that declares none, and so holds a document."""
    if not isinstance(kept, int) or -(2**63) <= kept < 2**64:
        return False
    return int not in (info.annotation, *get_args(info.annotation))


def _reshapes(model: type[BaseModel]) -> bool:
    """Return whether validators of the model read its members, so that no other code can know them."""
    validators = model.__pydantic_decorators__.model_validators.values()
    return any(validator.info.mode in ("before", "wrap") for validator in validators)


def _token(name: str) -> str:
    return escape_token(name[:100])
