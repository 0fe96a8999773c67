"""Bytes and models: whatever comes in, only the documented errors come out."""

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

from hybridkit.codec import (
    Timestamp,
    canonical_json,
    decode_json,
    decode_object,
    encode_json,
    format_timestamp,
    truncate_timestamp,
    validate_json,
    validate_object,
)
from hybridkit.errors import FieldProblem, MalformedPayloadError, PayloadError, PayloadTooLargeError

zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.one_of(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 30)),
    st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 30), timezones=zones),
)


class Colour(StrEnum):
    RED = "red"


class Moment(BaseModel):
    at: Timestamp


class Circle(BaseModel):
    kind: Literal["circle"]


class Square(BaseModel):
    kind: Literal["square"]


class Node(BaseModel):
    child: "Node | None" = None


@given(moments)
def test_a_timestamp_is_utc_with_whole_milliseconds_and_reads_back(moment: datetime) -> None:
    """Models and the function write the same text, from any time zone."""
    text = format_timestamp(moment)
    assert text.endswith("Z")
    assert len(text) in (20, 24)
    assert Moment.model_validate_json(orjson.dumps({"at": text})).at == truncate_timestamp(moment)
    assert Moment(at=moment).model_dump_json() == orjson.dumps({"at": text}).decode()


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_in_utc_has_the_text_of_the_standard_library(moment: datetime) -> None:
    """The fast way for UTC gives the digits of `isoformat`, in every year."""
    text = moment.isoformat("T", "milliseconds")
    assert format_timestamp(moment) == text.replace(".000+", "+").replace("+00:00", "Z")


def test_a_timestamp_writes_milliseconds_only_where_there_are_any() -> None:
    """They are cut, never rounded."""
    assert format_timestamp(datetime(2025, 1, 15, 10, 30, tzinfo=UTC)) == "2025-01-15T10:30:00Z"
    assert (
        format_timestamp(datetime(2025, 1, 15, 10, 30, 0, 120_999, tzinfo=UTC)) == "2025-01-15T10:30:00.120Z"
    )
    assert format_timestamp(datetime(2025, 1, 15, 12, 30, tzinfo=timezone(timedelta(hours=2)))) == (
        "2025-01-15T10:30:00Z"
    )


def test_a_moment_that_has_no_utc_year_is_a_validation_error() -> None:
    """The first hour of year 1, two hours east of Greenwich, lies before year 1."""
    with pytest.raises(ValidationError, match="out of range"):
        Moment(at=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2))))


def test_scalars_have_one_form() -> None:
    """In models and outside of them, a value has the same bytes."""
    value = {
        "id": UUID("1F1E544B-A8E6-6CD0-B9F6-F62D3C05B3BC"),
        "total": Decimal("10.00"),
        "at": datetime(2025, 1, 15, 10, 30, tzinfo=UTC),
        "colour": Colour.RED,
        "model": Moment(at=datetime(2025, 1, 15, tzinfo=UTC)),
    }
    assert encode_json(value) == (
        b'{"id":"1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc","total":"10.00","at":"2025-01-15T10:30:00Z",'
        b'"colour":"red","model":{"at":"2025-01-15T00:00:00Z"}}'
    )
    assert encode_json(Moment(at=datetime(2025, 1, 15, tzinfo=UTC))) == b'{"at":"2025-01-15T00:00:00Z"}'


@given(st.integers() | st.integers(10**300, 10**308 - 1))
def test_an_integer_is_exact_however_long_it_is(number: int) -> None:
    """Over 64 bits too, which the usual parsers make floats of."""
    for value in (number, [number, "7"], {"b": -number, "a": datetime(2025, 1, 15, tzinfo=UTC)}):
        body = encode_json(value)
        assert encode_json(decode_json(body)) == body
    assert decode_json(encode_json({"n": number})) == {"n": number}
    assert canonical_json({"b": number, "a": 1}) == canonical_json({"a": 1, "b": number})


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" + "0" * 400, "1" + "0" * 5000]
)
@pytest.mark.parametrize("layout", ["{}", '{{"a":[{}]}}', '{{ "a" : {} }}', "[1,\n{}\n]"])
def test_what_no_double_holds_is_no_json(number: str, layout: str) -> None:
    """Wherever it stands and however the JSON is laid out."""
    with pytest.raises(MalformedPayloadError):
        decode_json(layout.format(number).encode())


@pytest.mark.parametrize("value", [object(), {"x": b"\xff"}, "\ud800", [2**70, "\ud800"], {1: 2}])
def test_what_has_no_json_form_is_refused(value: object) -> None:
    """The error is the typed one, not the one of the JSON library."""
    with pytest.raises(MalformedPayloadError, match="no JSON form"):
        encode_json(value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(json_values)
def test_json_reads_back_as_it_was_written(value: Any) -> None:
    """An infinite number is written as null, as JSON has none."""
    if isinstance(value, float) and math.isinf(value):
        assert decode_json(encode_json(value)) is None
    else:
        assert decode_json(encode_json(value)) == orjson.loads(orjson.dumps(value))


@given(st.binary())
def test_any_bytes_give_a_value_or_the_documented_error(body: bytes) -> None:
    """The error says at which byte reading ended."""
    try:
        decode_json(body)
    except MalformedPayloadError as error:
        assert "at byte" in str(error)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[]", "an array"),
        (b"1", "a number"),
        (b'"x"', "a string"),
        (b"true", "a boolean"),
        (b"null", "null"),
    ],
)
def test_an_object_is_asked_for_by_name(body: bytes, kind: str) -> None:
    """The error says which other kind of JSON came."""
    with pytest.raises(MalformedPayloadError, match=f"not a JSON object but {kind}"):
        decode_object(body)


def test_a_body_over_the_limit_is_refused_unread() -> None:
    """The error has both sizes, also for bytes that are no JSON."""
    with pytest.raises(PayloadTooLargeError, match="11 bytes, 10 are allowed") as caught:
        decode_json(b"not json at", limit_bytes=10)
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (11, 10)


def test_every_problem_is_named_with_its_pointer_and_without_its_value() -> None:
    """A value may be a secret; names are escaped as RFC 6901 says."""

    class Order(BaseModel):
        total: int
        lines: list[dict[str, int]]

    with pytest.raises(MalformedPayloadError) as caught:
        validate_json(
            TypeAdapter(Order), b'{"total":"CANARY","lines":[{"a/b~c":"CANARY"}]}', what="the order"
        )
    assert [error.pointer for error in caught.value.errors] == ["/total", "/lines/0/a~1b~0c"]
    assert "CANARY" not in str(caught.value)
    assert "the order does not fit: /total:" in str(caught.value)


def test_a_tag_that_no_variant_has_is_not_quoted() -> None:
    """Pydantic's own words for it repeat what was sent."""

    shapes: TypeAdapter[Any] = TypeAdapter(Annotated[Circle | Square, Field(discriminator="kind")])
    with pytest.raises(MalformedPayloadError) as caught:
        validate_object(shapes, {"kind": "CANARY"}, what="the shape")
    assert [error.code for error in caught.value.errors] == ["union_tag_invalid"]
    assert "CANARY" not in str(caught.value)


def test_an_already_parsed_value_is_checked_the_same_way() -> None:
    """The finding has the pointer and the code that JSON bytes would have got."""
    with pytest.raises(MalformedPayloadError) as caught:
        validate_object(TypeAdapter(dict[str, int]), {"a": "x"}, what="the map")
    assert caught.value.errors == (FieldProblem("/a", "int_parsing"),)


def test_a_recursive_model_that_is_nested_without_end_is_refused() -> None:
    """A model that contains itself can't exhaust the stack."""
    body = b'{"child":' * 3_000 + b"null" + b"}" * 3_000
    with pytest.raises(PayloadError):
        validate_json(TypeAdapter(Node), body, what="the tree")


def test_a_validator_that_exhausts_the_stack_blames_the_payload() -> None:
    """A `RecursionError` of a declaration is an error of the payload."""

    def recurse(value: object) -> object:
        return recurse(value)

    endless: TypeAdapter[object] = TypeAdapter(Annotated[object, AfterValidator(recurse)])
    with pytest.raises(MalformedPayloadError, match="nested too deeply"):
        validate_object(endless, 1, what="the value")


def test_a_thousand_problems_are_reported_as_twenty() -> None:
    """A hostile body can't make an error of any size."""
    with pytest.raises(MalformedPayloadError) as caught:
        validate_json(TypeAdapter(list[int]), orjson.dumps(["x"] * 1_000), what="the list")
    assert len(caught.value.errors) == 20


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1E+2", "100"),
        ("1.50E-7", "0.000000150"),
        ("-0.00", "0.00"),
        ("0E+5", "0"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("1E+1000", "1" + "0" * 1000),
        ("1E+131073", "1E+131073"),
        ("0E-999999999", "0E-999999999"),
        ("1E-999999999", "1E-999999999"),
    ],
)
def test_a_decimal_has_no_exponent_unless_it_would_be_endless(value: str, text: str) -> None:
    """PostgreSQL prints digits too; but ten bytes of a caller's must not become a gigabyte of zeros."""
    assert encode_json([Decimal(value)]) == f'["{text}"]'.encode()


@given(
    st.datetimes(datetime(1, 1, 1), datetime(1, 1, 3)) | st.datetimes(datetime(9999, 12, 29)),
    st.integers(-1439, 1439),
)
def test_at_the_calendars_edges_a_moment_is_read_or_refused(moment: datetime, offset: int) -> None:
    """With an offset it can be of no year that UTC has: that is a fault of the value, and no other error."""
    sign, (hours, minutes) = "-" if offset < 0 else "+", divmod(abs(offset), 60)
    text = f"{moment.isoformat()}{sign}{hours:02}:{minutes:02}"
    try:
        read = Moment.model_validate_json(orjson.dumps({"at": text})).at
    except ValidationError:
        with pytest.raises(OverflowError):
            datetime.fromisoformat(text).astimezone(UTC)
    else:
        assert read == truncate_timestamp(datetime.fromisoformat(text))


@pytest.mark.parametrize("text", ["2026-06-30T23:59:60Z", "2026-01-01T00:00:00+24:00", "10" * 30])
def test_what_no_datetime_holds_is_refused(text: str) -> None:
    """A leap second too: rounded, it would be another moment."""
    with pytest.raises(ValidationError):
        Moment.model_validate({"at": text})


@pytest.mark.parametrize("digits", [1, 3, 6, 7, 9, 12, 30])
def test_a_fraction_is_cut_to_milliseconds_however_long_it_is(digits: int) -> None:
    """A sender may write more digits than Python's `datetime` holds."""
    at = Moment.model_validate_json(orjson.dumps({"at": f"2026-01-01T00:00:00.{'9' * digits}Z"})).at
    assert at.microsecond == int("999"[:digits].ljust(3, "0")) * 1000
