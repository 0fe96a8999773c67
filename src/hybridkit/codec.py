"""Read and write JSON: the one place where bytes become models, and models bytes.

Reading raises nothing but `PayloadError`, whatever the bytes are. Writing gives canonical scalars, so that a value has
the same bytes on every path: timestamps are UTC with `Z` and at most milliseconds, decimals are strings, UUIDs are
lower case.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, cast

import orjson
from pydantic import AfterValidator, BaseModel, PlainSerializer, TypeAdapter, ValidationError
from pydantic_core import from_json

from hybridkit._syntax import json_pointer
from hybridkit.errors import FieldProblem, MalformedPayloadError, MisuseError, PayloadTooLargeError

__all__ = [
    "MAX_FIELD_ERRORS",
    "MAX_MESSAGE_BYTES",
    "InexactFloat",
    "Timestamp",
    "canonical_json",
    "check_readable",
    "check_size",
    "decode_json",
    "decode_numbers",
    "decode_object",
    "encode_json",
    "field_errors",
    "format_timestamp",
    "in_utc",
    "now",
    "peek_object",
    "truncate_timestamp",
    "validate_json",
    "validate_object",
]

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""The most bytes that one message can have, body included: 16 MiB, RabbitMQ's default `max_message_size` since 4.0."""

MAX_FIELD_ERRORS: Final = 20
"""The most problems that one error lists; a hostile body can have millions."""
MAX_PLAIN_EXPONENT: Final = 131_072
"""The digits that PostgreSQL's `numeric` has before its point at most: larger numbers are written with an exponent."""
MAX_LEVELS: Final = 200
_STRIDE: Final = 32
_LONG_RUN: Final = re.compile(rb"[0-9]{9}")
"""In every 32nd byte: what 309 digits in a row, of which a double may already be infinite, always show there."""


def now() -> datetime:
    """Return the current time in UTC, truncated to the milliseconds that every store keeps.

    A test moves it by `hybridkit.testing.VirtualClock`.
    """
    moment = _read_clock()
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _system_clock() -> datetime:
    return datetime.now(UTC)


_read_clock: Callable[[], datetime] = _system_clock


def replace_clock(read: Callable[[], datetime] | None) -> None:
    """Have `now` read another clock, in all tasks and threads of the process.

    Args:
        read: returns an aware time; None for the system's clock.

    Raises:
        MisuseError: another clock has replaced the system's already, and each would move the other's time.
    """
    global _read_clock  # noqa: PLW0603 - one clock for the process, as the system's is
    if read is not None and _read_clock is not _system_clock:
        raise MisuseError("a VirtualClock is in use already; one test at a time moves the time of a process")
    _read_clock = read or _system_clock


def truncate_timestamp(moment: datetime) -> datetime:
    """Convert a moment to UTC and cut what is below milliseconds; a naive one is taken as UTC.

    Raises:
        ValueError: the moment falls outside the years 1 to 9999 once it is in UTC.
    """
    moment = in_utc(moment)
    below = moment.microsecond % 1000
    return moment.replace(microsecond=moment.microsecond - below) if below else moment


def in_utc(moment: datetime) -> datetime:
    """Convert a moment to UTC with all its digits; a naive one is taken as UTC.

    Raises:
        ValueError: the moment falls outside the years 1 to 9999 once it is in UTC.
    """
    if moment.tzinfo is UTC:
        return moment
    if not moment.utcoffset():  # naive, or UTC under another name; `replace` would take four times as long
        return datetime.combine(moment, moment.time(), UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("timestamp is out of range in UTC") from None


def format_timestamp(moment: datetime) -> str:
    """Format a moment as RFC 3339 in UTC: `2025-01-15T10:30:00Z`, with milliseconds only where there are any."""
    if type(moment) is datetime and moment.tzinfo is UTC:  # in a third of the time of `isoformat`
        octets = orjson.dumps(moment, option=orjson.OPT_UTC_Z)  # in quotes
        if len(octets) == _WHOLE_SECONDS:
            return octets[1:-1].decode()
        return octets[1:20].decode() + "Z" if octets[20:24] == b".000" else octets[1:24].decode() + "Z"
    if moment.tzinfo is not UTC and moment.utcoffset():
        moment = truncate_timestamp(moment)
    text = moment.isoformat("T", "milliseconds")
    return f"{text[:19]}Z" if text.startswith(".000", 19) else f"{text[:23]}Z"


_WHOLE_SECONDS: Final = len('"2025-01-15T10:30:00Z"')


Timestamp = Annotated[
    datetime,
    AfterValidator(truncate_timestamp),
    PlainSerializer(format_timestamp, return_type=str, when_used="json"),
]
"""A `datetime` field that reads any RFC 3339 form and writes the canonical one.

Of a fraction what is below milliseconds is cut. A leap second (`23:59:60Z`) is refused, as Python's `datetime` and the
databases can't hold it; so is a moment that leaves the years 1 to 9999 once it is in UTC.
"""


def encode_json(value: Any, *, without: Collection[str] = ()) -> bytes:
    """Write a value as compact JSON: models by their own serialiser, anything else with canonical scalars, NaN as null.

    Args:
        value: the value.
        without: fields of a model to leave out.

    Raises:
        MalformedPayloadError: the value holds something without a JSON form.
    """
    try:
        if isinstance(value, BaseModel):
            return value.model_dump_json(exclude=set(without) or None).encode()
        return _dumps(value, _ENCODE_OPTIONS)
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedPayloadError(f"{type(value).__name__} has no JSON form: {error}") from None


def canonical_json(value: Any) -> bytes:
    """Write the same bytes for the same JSON value, in whatever order its members are, as fingerprints need.

    Args:
        value: a value from `decode_json`.
    """
    return _dumps(value, orjson.OPT_SORT_KEYS)


def decode_json(body: bytes, *, limit_bytes: int = MAX_MESSAGE_BYTES, as_written: bool = False) -> Any:
    """Read JSON of RFC 8259: UTF-8, without NaN and infinities, at most 200 levels deep, and with exact integers.

    Args:
        body: the bytes.
        limit_bytes: the most bytes that the body may have.
        as_written: read a number that no float is as an `InexactFloat`, which knows how it was written.

    Raises:
        PayloadTooLargeError: the body is over the limit; nothing was parsed.
        MalformedPayloadError: the body is not JSON.
    """
    _judged(body, limit_bytes)
    try:
        # pydantic keeps integers over 64 bits, where orjson makes floats of them.
        return decode_numbers(body) if as_written else from_json(body)
    except ValueError as error:
        raise MalformedPayloadError(f"the body can't be read: {error}") from None


class InexactFloat(float):
    """The nearest float to a number in JSON that no float is, such as `0.1000000000000000000001` or `1e-400`.

    Attributes:
        token: the number as it was written, which is how `encode_json` writes it again.
    """

    token: str


def decode_numbers(body: bytes) -> Any:
    """Read bytes that `decode_json` takes, with an `InexactFloat` for each number that no float is."""
    if not may_be_inexact(body):
        return from_json(body)
    return json.loads(body, parse_float=_written)


def may_be_inexact(body: bytes) -> bool:
    """Return whether JSON may have a number that no float is; False means that every reader reads the same numbers."""
    return _MAYBE_INEXACT.search(body) is not None


_MAYBE_INEXACT: Final = re.compile(rb"[0-9.]{17}|[0-9][eE][+-]?[0-9]{2}")
"""Up to 15 digits and an exponent of one digit are safe, https://en.cppreference.com/w/c/types/limits."""


def _written(token: str) -> float:
    number = float(token)
    if Decimal(token) == Decimal(repr(number)):
        return number
    inexact = InexactFloat(number)
    inexact.token = token
    return inexact


def decode_object(
    body: bytes, *, limit_bytes: int = MAX_MESSAGE_BYTES, as_written: bool = False
) -> dict[str, Any]:
    """Read a body that has to be a JSON object, as `decode_json` does."""
    return _object(decode_json(body, limit_bytes=limit_bytes, as_written=as_written))


def peek_object(body: bytes, *, limit_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """Read a JSON object in half the time of `decode_object`, to look at a body whose values are read elsewhere.

    Integers over 64 bits become floats, and up to 1024 levels are taken.
    """
    return _object(_judged(body, limit_bytes))


def validate_json[T](adapter: TypeAdapter[T], body: bytes, *, what: str, strict: bool | None = None) -> T:
    """Read JSON as a value of the adapter's type.

    Args:
        adapter: the type to read.
        body: UTF-8 JSON.
        what: the name of the thing being read, for the error's message.
        strict: refuse a text where a number or a boolean is declared; by default the type decides.

    Raises:
        MalformedPayloadError: the body is not JSON, or not of the type. The error has a pointer for each problem, and
            no values.
    """
    try:
        return cast("T", adapter.validator.validate_json(body, strict=strict))
    except (ValidationError, RecursionError) as error:
        raise _malformed(what, error) from None


def validate_object[T](adapter: TypeAdapter[T], value: Any, *, what: str) -> T:
    """Read an already parsed JSON value as a value of the adapter's type, as `validate_json` does."""
    try:
        return adapter.validate_python(value)
    except (ValidationError, RecursionError) as error:
        raise _malformed(what, error) from None


def field_errors(error: ValidationError) -> tuple[FieldProblem, ...]:
    """Convert pydantic's findings to JSON pointers and codes, without the values that caused them."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return tuple(
        FieldProblem(_pointer(detail["loc"]), detail["type"], _message(detail["type"], detail["msg"]))
        for detail in found[:MAX_FIELD_ERRORS]
    )


def check_size(body: bytes, *, limit_bytes: int) -> None:
    """Refuse a body over the limit before anything reads it.

    Raises:
        PayloadTooLargeError: the body is over the limit; the error has both sizes.
    """
    size_bytes = len(body)
    if size_bytes > limit_bytes:
        raise PayloadTooLargeError(
            f"the body has {size_bytes} bytes, {limit_bytes} are allowed",
            size_bytes=size_bytes,
            limit_bytes=limit_bytes,
        )


def check_readable(body: bytes) -> None:
    """Refuse our own JSON where `decode_json` would: deeper than 200 levels, or with a number beyond a double's.

    Args:
        body: JSON that a serialiser has written. It is parsed only where it may hold such a thing: where it has enough
            brackets, or digits in as many places as a run of 309 would cover.

    Raises:
        MalformedPayloadError: no reader would take the body.
    """
    if body.count(b"[") + body.count(b"{") > MAX_LEVELS or _LONG_RUN.search(body[::_STRIDE]):
        decode_json(body)


def _judged(body: bytes, limit_bytes: int) -> Any:
    """Read the value by the stricter of two readers: the other one takes NaN and numbers beyond a double's range."""
    check_size(body, limit_bytes=limit_bytes)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedPayloadError(f"the body is not JSON: {error.msg} at byte {error.pos}") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = _JSON_NAMES.get(type(cast("object", value)), "a number")
        raise MalformedPayloadError(f"the body is not a JSON object but {kind}")
    return cast("dict[str, Any]", value)


# Timestamps go through `format_timestamp`, not through orjson's own form, which keeps microseconds.
_ENCODE_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


def _dumps(value: Any, option: int) -> bytes:
    try:
        return orjson.dumps(value, default=_encode_scalar, option=option)
    except TypeError as error:
        if str(error) != _TOO_LONG:
            raise
    # The standard library writes integers of any length; of what comes here it writes the rest as orjson does.
    return json.dumps(
        value,
        default=_encode_scalar,
        sort_keys=bool(option & orjson.OPT_SORT_KEYS),
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    ).encode()


_TOO_LONG: Final = "Integer exceeds 64-bit range"


def _encode_scalar(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_timestamp(value)
    if isinstance(value, InexactFloat):
        return orjson.Fragment(value.token)
    if isinstance(value, Decimal):
        return _decimal_text(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return _FALLBACK.dump_python(value, mode="json")


def _decimal_text(value: Decimal) -> str:
    """Format a decimal as PostgreSQL prints it: without a sign of zero, with an exponent only beyond its own range."""
    if not value:
        value = Decimal((0, (0,), min(int(value.as_tuple().exponent), 0)))
    if value.is_finite() and abs(value.adjusted()) > MAX_PLAIN_EXPONENT:
        return str(value)
    return f"{value:f}"


_FALLBACK: TypeAdapter[Any] = TypeAdapter(Any)


def _malformed(what: str, error: ValidationError | RecursionError) -> MalformedPayloadError:
    if isinstance(error, RecursionError):
        return MalformedPayloadError(f"{what} is nested too deeply")
    return MalformedPayloadError(f"{what} does not fit", errors=field_errors(error))


def _pointer(location: Sequence[int | str]) -> str:
    """Format a place as a JSON pointer (RFC 6901, section 3), cut where a hostile key would make it endless."""
    return json_pointer(str(part)[:100] for part in location[:20])


def _message(code: str, message: str) -> str:
    """Return pydantic's words, except where they quote what was sent."""
    return "" if code.startswith("union_tag") else message


_JSON_NAMES: Mapping[type, str] = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
