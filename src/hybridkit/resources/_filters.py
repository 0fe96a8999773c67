"""Filters as values: a tree that clients build from fields of a resource and data services read."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from math import isfinite
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeAliasType,
    Union,
    cast,
    get_args,
    get_origin,
)
from uuid import UUID

import orjson
from pydantic import AfterValidator, BeforeValidator, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, from_json

from hybridkit.codec import InexactFloat, encode_json, in_utc, truncate_timestamp
from hybridkit.errors import InvalidQueryError

type Operator = Literal[
    "eq", "neq", "gt", "gte", "lt", "lte", "in", "like", "ilike", "is", "contains", "overlaps"
]
type Filter = Compare | And | Or | Not

OPERATORS: Final[tuple[str, ...]] = get_args(Operator.__value__)
PATTERN_OPERATORS: Final = ("like", "ilike")
LIST_OPERATORS: Final = ("contains", "overlaps")
MEMBER_OPERATORS: Final = ("in", *LIST_OPERATORS)
"""Operators whose operand is a list of values."""
MAX_DEPTH: Final = 8
MAX_CONDITIONS: Final = 100
MAX_IN_VALUES: Final = 1000
MAX_PATTERN_LENGTH: Final = 1000
MAX_PARSE_DEPTH: Final = 32
"""The depth at which reading a tree stops, so that a hostile one is refused before it exhausts the stack."""


class _Combinable:
    """A node of the tree: filters combine with `&`, `|` and `~`."""

    __slots__ = ()

    def __and__(self, other: Filter) -> "And":
        return And((*_parts(self, And), *_parts(other, And)))

    def __or__(self, other: Filter) -> "Or":
        return Or((*_parts(self, Or), *_parts(other, Or)))

    def __invert__(self) -> "Filter":
        return self.part if isinstance(self, Not) else Not(cast("Compare | And | Or", self))

    def __bool__(self) -> bool:
        raise TypeError("a filter has no truth value: combine filters with & | ~, not with and, or, not")


@dataclass(frozen=True, slots=True)
class Compare(_Combinable):
    """One condition on one field.

    Attributes:
        field: a declared field, or a dotted path into it.
        operator: `eq neq gt gte lt lte in like ilike is contains overlaps`.
        value: of the field's type, but any finite number for a number, and a moment as exact as it was given; a tuple
            for `in`, and for `contains` and `overlaps` one of elements of the field, which is a list; None, True or
            False for `is`; for `like` and `ilike` a pattern with `%` (any run of characters), `_` (any one) and a
            backslash before a literal one.
    """

    field: str
    operator: Operator
    value: Any


@dataclass(frozen=True, slots=True)
class And(_Combinable):
    """A filter that holds where all its parts do."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or(_Combinable):
    """A filter that holds where at least one of its parts does."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not(_Combinable):
    """The opposite of a filter. As in SQL, a condition on an absent value holds neither as it is nor negated."""

    part: "Compare | And | Or"


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A declared field of a resource, ready to be compared: `USERS["email"] == "a@example.com"`.

    Attributes:
        name: the field, or a dotted path into it.
        adapter: of the type that values are compared as.
        element: of the type of a list's elements; None for a field that is no list of plain values.
    """

    name: str
    adapter: TypeAdapter[Any]
    element: TypeAdapter[Any] | None = None

    __hash__ = None  # type: ignore[assignment] # == builds a filter, so equality can't be hashed

    def __eq__(self, value: object) -> Compare:  # type: ignore[override]
        return self.compare("eq", value)

    def __ne__(self, value: object) -> Compare:  # type: ignore[override]
        return self.compare("neq", value)

    def __gt__(self, value: object) -> Compare:
        return self.compare("gt", value)

    def __ge__(self, value: object) -> Compare:
        return self.compare("gte", value)

    def __lt__(self, value: object) -> Compare:
        return self.compare("lt", value)

    def __le__(self, value: object) -> Compare:
        return self.compare("lte", value)

    def in_(self, values: Iterable[object]) -> Compare:
        """Return the condition that the field is equal to one of at most 1,000 values."""
        return self.compare("in", list(values))

    def like(self, pattern: str) -> Compare:
        """Return the condition that the text matches a pattern with `%` and `_`, case-sensitively."""
        return self.compare("like", pattern)

    def ilike(self, pattern: str) -> Compare:
        """Return the condition that the text matches a pattern with `%` and `_`, whatever its case."""
        return self.compare("ilike", pattern)

    def starts_with(self, text: str, *, ignore_case: bool = False) -> Compare:
        """Return the condition that the text begins with another one, in which `%` and `_` are characters."""
        return self.compare("ilike" if ignore_case else "like", f"{_escaped(text)}%")

    def ends_with(self, text: str, *, ignore_case: bool = False) -> Compare:
        """Return the condition that the text ends with another one, in which `%` and `_` are characters."""
        return self.compare("ilike" if ignore_case else "like", f"%{_escaped(text)}")

    def contains_text(self, text: str, *, ignore_case: bool = False) -> Compare:
        """Return the condition that another text is somewhere in the text; `%` and `_` are characters in it."""
        return self.compare("ilike" if ignore_case else "like", f"%{_escaped(text)}%")

    def contains(self, values: Iterable[object]) -> Compare:
        """Return the condition that the list has each of at most 1,000 values, in any order; all lists have none."""
        return self.compare("contains", list(values))

    def overlaps(self, values: Iterable[object]) -> Compare:
        """Return the condition that the list has at least one of at most 1,000 values; no list has one of none."""
        return self.compare("overlaps", list(values))

    def is_null(self) -> Compare:
        """Return the condition that the field has no value."""
        return self.compare("is", None)

    def compare(self, operator: Operator, value: object, *, pointer: str = "") -> Compare:
        """Return a condition on the field, its value checked against the field's type.

        Args:
            operator: as in `Compare`.
            value: a Python or JSON value.
            pointer: the JSON pointer of the condition in the query, for the error.

        Raises:
            InvalidQueryError: the value doesn't fit the field and operator.
        """
        match operator:
            case "is":
                if value is not None and not isinstance(value, bool):
                    raise InvalidQueryError(f"{self.name}: `is` takes null, true or false", pointer=pointer)
                return Compare(self.name, operator, value)
            case "in" | "contains" | "overlaps":
                return Compare(self.name, operator, self._values(operator, value, pointer))
            case "like" | "ilike":
                return Compare(self.name, operator, self._pattern(value, pointer))
            case "gt" | "gte" | "lt" | "lte" if "." in self.name and isinstance(value, dict | list):
                raise InvalidQueryError(
                    f"{self.name}: no array or object is greater than another", pointer=pointer
                )
            case _:
                return Compare(self.name, operator, self._value(value, pointer))

    def parse(self, text: str, *, operator: Operator = "eq", pointer: str = "") -> Any:
        """Read a value from its text in a URL, for an operator of lists an element.

        Raises:
            InvalidQueryError: the text is no value of the field's type.
        """
        if "." in self.name:
            return json_scalar(text)
        adapter = self._adapter(operator, pointer)
        if operator in LIST_OPERATORS:
            # A list may have both 1 and "1", so the latter keeps its quotes; in a list of texts 1 needs none.
            with suppress(ValidationError):
                return adapter.validate_python(json_scalar(text))
        try:
            return adapter.validate_strings(text)
        except ValidationError as error:
            raise self._unfit(error, pointer) from None

    def _adapter(self, operator: Operator, pointer: str) -> TypeAdapter[Any]:
        """Return the adapter for the operator's values."""
        if operator not in LIST_OPERATORS:
            return self.adapter
        if self.element is None:
            raise InvalidQueryError(
                f"{self.name}: `{operator}` looks into a list of texts, numbers or the like", pointer=pointer
            )
        return self.element

    def _value(self, value: object, pointer: str, operator: Operator = "eq") -> Any:
        if value is None:
            raise InvalidQueryError(f"{self.name}: null is compared with `is` (is_null())", pointer=pointer)
        try:
            return self._adapter(operator, pointer).validate_python(value)
        except ValidationError as error:
            raise self._unfit(error, pointer) from None

    def _values(self, operator: Operator, values: object, pointer: str) -> tuple[Any, ...]:
        self._adapter(operator, pointer)
        if not isinstance(values, list | tuple):
            raise InvalidQueryError(f"{self.name}: `{operator}` takes a list of values", pointer=pointer)
        listed = cast("Sequence[object]", values)
        if len(listed) > MAX_IN_VALUES:
            raise InvalidQueryError(
                f"{self.name}: `{operator}` takes at most {MAX_IN_VALUES} values, not {len(listed)}",
                pointer=pointer,
            )
        return tuple(self._value(value, pointer, operator) for value in listed)

    def _pattern(self, pattern: object, pointer: str) -> str:
        if not isinstance(pattern, str) or not isinstance(self._text_probe(), str):
            raise InvalidQueryError(f"{self.name}: `like` compares text with a pattern", pointer=pointer)
        if len(pattern) > MAX_PATTERN_LENGTH:
            raise InvalidQueryError(
                f"{self.name}: a pattern has at most {MAX_PATTERN_LENGTH} characters", pointer=pointer
            )
        tokens = list(pattern_tokens(pattern))
        if tokens and tokens[-1] == "\\":
            raise InvalidQueryError(f"{self.name}: the pattern ends in a lone backslash", pointer=pointer)
        return "".join(
            token if token in ("\\%", "\\_", "\\\\") or len(token) == 1 else token[1] for token in tokens
        )

    def _text_probe(self) -> object:
        """Read a text that is no number, word or date: only a field that holds text gives it back as text."""
        try:
            return self.adapter.validate_python("\N{SNOWMAN}")
        except ValidationError:
            return None

    def _unfit(self, error: ValidationError, pointer: str) -> InvalidQueryError:
        reason = error.errors(include_input=False, include_url=False)[0]["msg"]
        return InvalidQueryError(f"{self.name}: {reason}", pointer=pointer)


# ── operands ─────────────────────────────────────────────────────────────────────────────────────


def operand_type(annotation: Any) -> Any:
    """Return the type that a field's operands are read as: the field's own, except for what would change the question.

    A moment isn't cut to the milliseconds that a store keeps, and a number may be one that the field can't hold: all
    integers are less than 3.5 or more, and of an amount that is at least 0 one may ask whether it is above -1.
    """
    plain, metadata = _unwrapped(annotation)
    members = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,)
    kinds = {_unwrapped(member)[0] for member in members} - {type(None)}
    kinds = {
        getattr(kind, "__default__", kind) for kind in kinds
    }  # the id of a `Record` without a type argument
    if kinds == {float}:
        return Annotated[Any, PlainValidator(_float)]
    if kinds == {int, float}:
        return Annotated[Any, PlainValidator(_integer_or_float)]
    if kinds == {UUID}:
        return Annotated[plain, *metadata, BeforeValidator(_uuid_text)]
    if kinds and kinds <= {int, float, Decimal}:
        return Annotated[Any, PlainValidator(_number)]
    exact = [AfterValidator(in_utc) if _truncates(each) else each for each in metadata]
    return Annotated[plain, *exact] if exact else plain


def element_type(annotation: Any) -> Any:
    """Return the type of the elements of a list of plain values; None for any other type."""
    plain, _ = _unwrapped(annotation)
    arguments = get_args(plain)
    is_list = get_origin(plain) in (list, set, frozenset) or (
        get_origin(plain) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis
    )
    if not is_list:
        return None
    element, _ = _unwrapped(arguments[0])
    members = get_args(element) if get_origin(element) in (Union, UnionType) else (element,)
    kinds = [_unwrapped(member)[0] for member in members if member is not type(None)]
    plain_kinds = all(isinstance(kind, type) and issubclass(kind, _PLAIN) for kind in kinds)
    return arguments[0] if kinds == [Any] or plain_kinds else None


_PLAIN: Final = (str, int, float, Decimal, bool, UUID, date, datetime, Enum)


def _plain_value(value: object) -> object:
    """Return an element of a list that may hold anything; only plain values are compared."""
    if isinstance(value, dict | list | tuple):
        raise PydanticCustomError("plain_value", "a text, a number, true or false is expected")
    return value


PLAIN_VALUES: Final[TypeAdapter[Any]] = TypeAdapter(Annotated[Any, AfterValidator(_plain_value)])
"""The elements of a list that may hold anything."""


def _unwrapped(annotation: Any) -> tuple[Any, Sequence[Any]]:
    """Return a type without its annotations and aliases, and the annotations, innermost first."""
    metadata: tuple[Any, ...] = ()
    while True:
        if isinstance(annotation, TypeAliasType):
            annotation = annotation.__value__
        elif get_origin(annotation) is Annotated:
            annotation, *outer = get_args(annotation)
            metadata = (*outer, *metadata)
        else:
            return annotation, metadata


def _truncates(annotation: object) -> bool:
    return isinstance(annotation, AfterValidator) and annotation.func is truncate_timestamp


def _number(value: object) -> int | Decimal:
    """Return a finite number, exactly as it was given."""
    match value:
        case bool():
            pass
        case int():
            return value
        case InexactFloat():
            return Decimal(value.token)
        case float() if isfinite(value):
            return Decimal(repr(value))
        case Decimal() if value.is_finite():
            return value
        case str() if _NUMBER.fullmatch(value):
            return int(value) if _WHOLE.fullmatch(value) else Decimal(value)
        case _:
            pass
    raise PydanticCustomError("finite_number", "a finite number is expected")


def _integer_or_float(value: object) -> int | float | Decimal:
    """Return a finite number in the form that documents have: an integer or a float."""
    number = _number(value)
    return number if isinstance(number, int) else _float(number)


def _uuid_text(value: object) -> object:
    """Refuse texts that a body's UUID field refuses too, though Python's `UUID` takes them."""
    if isinstance(value, str) and not _UUID.fullmatch(value):
        raise PydanticCustomError("uuid_parsing", "a UUID has five groups of hexadecimal digits")
    return value


_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def _float(value: object) -> int | float | Decimal:
    """Return a finite number as a float, or unchanged where no float is as large."""
    number = _number(value)
    try:
        found = float(number)
    except OverflowError:
        return number
    return found if isfinite(found) else number


_NUMBER: Final = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?\s*", re.ASCII)
_WHOLE: Final = re.compile(r"\s*[+-]?[0-9]{1,400}\s*", re.ASCII)


def json_scalar(text: str) -> Any:
    """Read a value for a path into a document, which has no type: a JSON scalar where it reads as one, or text."""
    try:
        value = from_json(text)
    except ValueError:
        return text
    if isinstance(value, float) and not isfinite(value):
        return _number(text) if _NUMBER.fullmatch(text) else text
    return text if isinstance(value, dict | list) or value is None else value


def _escaped(text: str) -> str:
    """Return the pattern that matches exactly this text."""
    return re.sub(r"[%_\\]", r"\\\g<0>", text)


def pattern_tokens(pattern: str) -> Iterator[str]:
    """Split a pattern into characters, each with the backslash that escapes it."""
    characters = iter(pattern)
    for character in characters:
        yield character + next(characters, "") if character == "\\" else character


def wire_value(value: Any) -> Any:
    """Return a filter value in its JSON form, without loss of digits or of fractions of a second."""
    if isinstance(value, tuple):
        return [wire_value(item) for item in cast("tuple[Any, ...]", value)]
    if isinstance(value, datetime):
        return f"{in_utc(value).replace(tzinfo=None).isoformat()}Z"
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    return orjson.loads(encode_json(value))


def check_size(where: Filter) -> None:
    """Refuse a filter with more than 8 levels or more than 100 conditions.

    Raises:
        InvalidQueryError: the filter is beyond one of the limits.
    """
    conditions = 0
    pending: list[tuple[Filter, int]] = [(where, 1)]
    while pending:
        node, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise InvalidQueryError(
                f"the filter is nested more than {MAX_DEPTH} levels deep", pointer="/where"
            )
        match node:
            case Compare():
                conditions += 1
            case Not():
                pending.append((node.part, depth + 1))
            case And() | Or():
                pending.extend((part, depth + 1) for part in node.parts)
    if conditions > MAX_CONDITIONS:
        raise InvalidQueryError(
            f"the filter has {conditions} conditions, at most {MAX_CONDITIONS} are allowed", pointer="/where"
        )


def _parts(node: object, kind: type[And | Or]) -> tuple[Filter, ...]:
    return node.parts if isinstance(node, kind) else (cast("Filter", node),)
