"""Filters as URL parameters, in the grammar of PostgREST.

https://docs.postgrest.org/en/stable/references/api/tables_views.html#operators
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, assert_never, cast

from hybridkit.codec import encode_json
from hybridkit.errors import InvalidQueryError
from hybridkit.resources._filters import (
    MAX_CONDITIONS,
    MAX_PARSE_DEPTH,
    MEMBER_OPERATORS,
    OPERATORS,
    PATTERN_OPERATORS,
    And,
    Compare,
    Field,
    Filter,
    Not,
    Operator,
    Or,
    json_scalar,
    pattern_tokens,
    wire_value,
)
from hybridkit.resources._resource import AnyResource


def write_filter(where: Filter | None) -> list[tuple[str, str]]:
    """Return the filter as URL parameters that are not percent-encoded yet, one for each part of a conjunction."""
    match where:
        case None:
            return []
        case And() if len(where.parts) > 1:
            return [_to_param(part) for part in where.parts]
        case _:
            return [_to_param(where)]


def read_filter(resource: AnyResource, name: str, text: str) -> Filter:
    """Read the filter in one percent-decoded URL parameter.

    Raises:
        InvalidQueryError: the parameter is no filter; the error has a pointer to it.
    """
    return _Parser(resource, name, text).parameter()


def _to_param(node: Filter, negated: str = "") -> tuple[str, str]:
    match node:
        case Compare():
            return node.field, f"{negated}{node.operator}.{_operand_text(node, quote=False)}"
        case And() | Or():
            return f"{negated}{_combinator(node)}", _group(node)
        case Not():
            return _to_param(node.part, "not.")
        case _:
            assert_never(node)


def _term(node: Filter) -> str:
    """Write a condition as it stands inside parentheses."""
    match node:
        case Compare():
            return f"{node.field}.{node.operator}.{_operand_text(node, quote=True)}"
        case And() | Or():
            return f"{_combinator(node)}{_group(node)}"
        case Not():
            part = node.part
            if isinstance(part, Compare):
                return f"{part.field}.not.{part.operator}.{_operand_text(part, quote=True)}"
            return f"not.{_term(part)}"
        case _:
            assert_never(node)


def _combinator(node: And | Or) -> str:
    return "and" if isinstance(node, And) else "or"


def _group(node: And | Or) -> str:
    return f"({','.join(_term(part) for part in node.parts)})"


def _operand_text(node: Compare, *, quote: bool) -> str:
    match node.operator:
        case "in":
            return f"({','.join(_quoted(_text(node.field, value)) for value in node.value)})"
        case "contains" | "overlaps":
            return f"({','.join(_quoted(_scalar_text(wire_value(value))) for value in node.value)})"
        case "is":
            return _text(node.field, node.value)
        case "like" | "ilike":
            text = "".join(_PATTERN_TO_URL.get(token, token) for token in pattern_tokens(node.value))
        case _:
            text = _text(node.field, node.value)
    return _quoted(text) if quote else text


_PATTERN_TO_URL: Final = {"%": "*", "*": "\\*"}
_PATTERN_FROM_URL: Final = {"*": "%", "\\*": "*"}
_RESERVED: Final = frozenset(',.:()"\\ ')


def _quoted(text: str) -> str:
    if text and not _RESERVED.intersection(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(field: str, value: Any) -> str:
    """Write a value of a field, or of a path into a document."""
    if isinstance(value, Decimal) and "." in field:
        return str(value)  # a number, which in JSON would be a text
    wire = wire_value(value)
    return wire if isinstance(wire, str) and "." not in field else _scalar_text(wire)


def _scalar_text(wire: Any) -> str:
    """Write a value whose type the field doesn't say: a text that reads as another scalar keeps its quotes."""
    if isinstance(wire, str) and json_scalar(wire) is wire:
        return wire
    return encode_json(wire).decode()


class _Parser:
    """A reader of one URL parameter, whose name is a field, `or`, `and`, `not.or` or `not.and`."""

    def __init__(self, resource: AnyResource, name: str, text: str) -> None:
        self._resource = resource
        self._name = name
        self._text = text
        self._at = 0
        self._depth = 0
        self._conditions = 0
        self._pointer = f"/{name[:100]}"

    def parameter(self) -> Filter:
        bare = self._name.removeprefix("not.")
        if bare in ("and", "or"):
            parts = self._group()
            if self._at != len(self._text):
                raise self._error("text after the closing parenthesis")
            node = And(parts) if bare == "and" else Or(parts)
            return node if bare == self._name else Not(node)
        return self._condition(self._resource.field(self._name, pointer=self._pointer), nested=False)

    def _group(self) -> tuple[Filter, ...]:
        self._depth += 1
        if self._depth > MAX_PARSE_DEPTH:
            raise self._error("the filter is nested too deeply")
        self._expect("(")
        parts = [self._part()]
        while self._accept(","):
            parts.append(self._part())
        self._expect(")")
        self._depth -= 1
        return tuple(parts)

    def _part(self) -> Filter:
        for prefix, kind in (("and(", And), ("or(", Or)):
            for negation in ("", "not."):
                if self._text.startswith(negation + prefix, self._at):
                    self._at += len(negation + prefix) - 1
                    node = kind(self._group())
                    return Not(node) if negation else node
        return self._condition(self._field(), nested=True)

    def _field(self) -> Field:
        """Read the longest declared path that stands here: a path may have dots, which separate operators too."""
        for name in sorted({"id", *self._resource.filterable}, key=len, reverse=True):
            if self._text.startswith(f"{name}.", self._at):
                self._at += len(name) + 1
                return self._resource.field(name, pointer=self._pointer)
        raise self._error(f"no filterable field at {self._at}")

    def _condition(self, field: Field, *, nested: bool) -> Filter:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidQueryError(f"the filter has more than {MAX_CONDITIONS} conditions", pointer="/where")
        negated = self._accept("not.")
        operator = self._operator()
        compare = field.compare(
            operator, self._operand(field, operator, nested=nested), pointer=self._pointer
        )
        return Not(compare) if negated else compare

    def _operator(self) -> Operator:
        operator, dot, _ = self._text[self._at :].partition(".")
        if not dot or operator not in OPERATORS:
            raise self._error(f"an operator ({' '.join(OPERATORS)}) and a dot are expected")
        self._at += len(operator) + 1
        return cast("Operator", operator)

    def _operand(self, field: Field, operator: Operator, *, nested: bool) -> object:
        if operator in MEMBER_OPERATORS:
            values = self._values(field, operator)
            if not nested and self._at != len(self._text):
                raise self._error("text after the closing parenthesis")
            return values
        text = self._word() if nested else self._text[self._at :]
        if operator == "is":
            if text not in _IS_VALUES:
                raise self._error("`is` takes null, true or false")
            return _IS_VALUES[text]
        if operator in PATTERN_OPERATORS:
            return "".join(_PATTERN_FROM_URL.get(token, token) for token in pattern_tokens(text))
        return field.parse(text, pointer=self._pointer)

    def _values(self, field: Field, operator: Operator) -> list[Any]:
        self._expect("(")
        if self._accept(")"):
            return []
        values = [field.parse(self._word(), operator=operator, pointer=self._pointer)]
        while self._accept(","):
            values.append(field.parse(self._word(), operator=operator, pointer=self._pointer))
        self._expect(")")
        return values

    def _word(self) -> str:
        """Read a value inside parentheses: quoted, or up to the next comma or parenthesis."""
        if not self._accept('"'):
            start = self._at
            while self._at < len(self._text) and self._text[self._at] not in ",)":
                self._at += 1
            return self._text[start : self._at]
        word: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character == '"':
                return "".join(word)
            if character == "\\":
                character = self._text[self._at : self._at + 1]
                self._at += 1
            word.append(character)
        raise self._error("a quotation mark is not closed")

    def _accept(self, token: str) -> bool:
        if not self._text.startswith(token, self._at):
            return False
        self._at += len(token)
        return True

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise self._error(f"{token!r} is expected")

    def _error(self, message: str) -> InvalidQueryError:
        return InvalidQueryError(
            f"{self._name[:100]}: {message} (character {self._at})", pointer=self._pointer
        )


_IS_VALUES: Final[Mapping[str, bool | None]] = {"null": None, "true": True, "false": False}
