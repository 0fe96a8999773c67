"""Checks of a pipeline's expressions: operators are on a list, fields are visible at that point."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError

from hybridkit.codec import in_utc, truncate_timestamp
from hybridkit.dataservice._mongo._values import to_bson
from hybridkit.errors import InvalidQueryError

MAX_DEPTH: Final = 16
MAX_NODES: Final = 2000
MAX_LIST: Final = 1000

_OPERATORS: Final = frozenset(
    f"${name}"
    for names in (
        "abs add avg ceil divide floor max min mod multiply round subtract sum trunc",
        "and cmp cond eq gt gte ifNull in lt lte ne not or",
        "arrayElemAt concatArrays first isArray last size slice",
        "concat strLenCP substrCP toLower toUpper",
        "dateDiff dateToString dateTrunc dayOfMonth dayOfWeek dayOfYear hour isoWeek isoWeekYear minute month",
        "second week year",
        "isNumber toDate toDecimal toDouble toInt toLong toString type",
    )
    for name in names.split()
)
_NAMED_OPERANDS: Final = {
    "$cond": frozenset({"if", "then", "else"}),
    "$dateDiff": frozenset({"startDate", "endDate", "unit", "timezone"}),
    "$dateToString": frozenset({"date", "format", "timezone", "onNull"}),
    "$dateTrunc": frozenset({"date", "unit", "binSize", "timezone"}),
}
"""Operators whose operand is an object, and the names in it."""
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_PATH: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62}){0,15}")
_MOMENT: Final[TypeAdapter[datetime]] = TypeAdapter(datetime)


@dataclass(slots=True)
class NodeCount:
    """A count of checked nodes, so that a hostile pipeline is refused before it costs anything."""

    nodes: int = 0

    def step(self, depth: int, at: str) -> None:
        """Count one node, and refuse too many of them or too many levels."""
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise refuse(f"at most {MAX_DEPTH} levels and {MAX_NODES} parts", at[:200])


def expression(value: object, visible: frozenset[str], at: str, *, checked: NodeCount, depth: int = 1) -> Any:
    """Return the expression in the form in which it may run.

    Args:
        value: as it was sent: a literal, `"$field"`, an operator, or an object or list of these.
        visible: the fields that exist at that point.
        at: the JSON pointer of the expression.
        checked: the count of nodes.
        depth: of this expression in the whole one.

    Raises:
        InvalidQueryError: a part of the expression is not allowed.
    """
    checked.step(depth, at)
    match value:
        case str() if value.startswith("$"):
            return value if value == "$$NOW" else reference(value, visible, at)
        case list():
            return [
                expression(part, visible, f"{at}/{index}", checked=checked, depth=depth + 1)
                for index, part in enumerate(_short(cast("list[Any]", value), at))
            ]
        case dict() if any(str(name).startswith("$") for name in cast("dict[str, Any]", value)):
            return _operator(cast("dict[str, Any]", value), visible, at, checked=checked, depth=depth)
        case dict():
            return {
                checked_name(name, at): expression(
                    part, visible, f"{at}/{name}", checked=checked, depth=depth + 1
                )
                for name, part in cast("dict[str, Any]", value).items()
            }
        case _:
            return literal(value, at)


def _operator(
    value: dict[str, Any], visible: frozenset[str], at: str, *, checked: NodeCount, depth: int
) -> Any:
    if len(value) != 1:
        raise refuse("one operator, with what it takes", at)
    ((name, operand),) = value.items()
    where = f"{at}/{name[:50]}"
    if name in ("$date", "$numberDecimal"):
        return literal(value, at)
    if name == "$literal":
        return {"$literal": literal(operand, where)}
    if name not in _OPERATORS:
        raise refuse("this operator is not allowed", where)
    if isinstance(operand, dict) and not any(
        part.startswith("$") for part in cast("dict[str, Any]", operand)
    ):
        members = cast("dict[str, Any]", operand)
        if not set(members) <= _NAMED_OPERANDS.get(name, frozenset()):
            raise refuse("this operator takes no such members", where)
        return {
            name: {
                part: expression(member, visible, f"{where}/{part}", checked=checked, depth=depth + 1)
                for part, member in members.items()
            }
        }
    return {name: expression(cast("object", operand), visible, where, checked=checked, depth=depth + 1)}


def reference(text: str, visible: frozenset[str], at: str) -> str:
    """Return `$field` if the field exists; refuse variables (`$$ROOT`), which reach around the checks."""
    if text.startswith("$$"):
        raise refuse("the only variable is $$NOW", at)
    return "$" + visible_path(text[1:], visible, at)


def visible_path(path: object, visible: Iterable[str], at: str) -> str:
    """Return the field, or the path into it, if it is visible."""
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise refuse("no field can have this name", at)
    if not any(path == name or path.startswith(f"{name}.") for name in visible):
        raise refuse(f"fields here are {' '.join(sorted(visible))}"[:500], at)
    return path


def checked_name(name: object, at: str) -> str:
    """Return the name of a new member if it has a valid form."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise refuse("a name has letters, digits and _, and begins with a letter", at)
    return name


def literal(value: object, at: str) -> Any:
    """Return a value that means itself: a scalar, or a time or decimal in MongoDB's extended JSON."""
    match value:
        case None | bool() | int() | float():
            return value
        case str() if not value.startswith("$"):
            return value
        case {"$date": str(moment)} if _is_single(value):
            try:
                given = in_utc(_MOMENT.validate_python(moment))
            except (ValidationError, ValueError):
                raise refuse("no time", at) from None
            if given != truncate_timestamp(given):
                raise refuse("a time has at most milliseconds", at)
            return given
        case {"$numberDecimal": str(number)} if _is_single(value):
            try:
                return to_bson(Decimal(number))
            except (InvalidOperation, ArithmeticError):
                raise refuse("no decimal", at) from None
        case _:
            raise refuse(
                "a value is text without a leading $, a number, true, false, null, $date or $numberDecimal",
                at,
            )


def _is_single(value: object) -> bool:
    return len(cast("dict[str, Any]", value)) == 1


def refuse(message: str, pointer: str) -> InvalidQueryError:
    """Return the refusal of a part of the pipeline."""
    return InvalidQueryError(message, pointer=pointer[:500])


def _short(values: list[Any], at: str) -> list[Any]:
    if len(values) > MAX_LIST:
        raise refuse(f"at most {MAX_LIST} values", at)
    return values
