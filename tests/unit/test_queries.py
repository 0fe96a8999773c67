"""Filters and queries: both wire forms, read back, give the query that was written."""

from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hybridkit.codec import Timestamp, truncate_timestamp
from hybridkit.dataservice._memory._filters import fits
from hybridkit.errors import InvalidQueryError
from hybridkit.resources import And, Compare, Field, Filter, Not, Operator, Or, Query, Record, Resource


class Status(StrEnum):
    OPEN = "open"
    PAID = "paid"


class NewOrder(BaseModel):
    status: Status
    customer: str
    total: Decimal
    quantity: int
    is_gift: bool
    due_at: Timestamp | None = None
    meta: dict[str, Any] = {}
    tags: list[str] = []
    lines: tuple[int, ...] | None = None
    marks: list[Any] = []
    steps: list[dict[str, str]] = []


class Order(NewOrder, Record):
    pass


FILTERABLE = (
    "status",
    "customer",
    "total",
    "quantity",
    "is_gift",
    "due_at",
    "meta.source",
    "meta.source.page",
    "tags",
    "lines",
    "marks",
    "steps",
)
ORDERS = Resource(
    "orders",
    record=Order,
    create=NewOrder,
    update=NewOrder,
    filterable=FILTERABLE,
    sortable=("due_at", "total"),
)

# Surrogates have no UTF-8 form, so no client can send them.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "id": st.uuids(),
    "status": st.sampled_from(Status),
    "customer": text,
    "total": st.decimals(allow_nan=False, allow_infinity=False, places=4),
    "quantity": st.integers(-(2**53), 2**53),
    "is_gift": st.booleans(),
    "due_at": st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
        truncate_timestamp
    ),
    "meta.source": text | st.integers(-(2**31), 2**31) | st.booleans(),
    "meta.source.page": text,
}
ambiguous = st.sampled_from(["1", "true", "null", '"1"', "1.50"])
ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "tags": text | ambiguous,
    "lines": st.integers(-(2**53), 2**53),
    "marks": text
    | st.integers(-(2**31), 2**31)
    | st.booleans()
    | st.sampled_from(["1", "true", "null", '"1"', "1.50"]),
}


@st.composite
def conditions(draw: st.DrawFn) -> Compare:
    name = draw(st.sampled_from(sorted(VALUES)))
    field = ORDERS[name]
    match draw(st.sampled_from(["compare", "in", "is", "like", "list"])):
        case "list":
            name = draw(st.sampled_from(sorted(ELEMENTS)))
            values = draw(st.lists(ELEMENTS[name], max_size=3))
            return ORDERS[name].contains(values) if draw(st.booleans()) else ORDERS[name].overlaps(values)
        case "in":
            return field.in_(draw(st.lists(VALUES[name], max_size=3)))
        case "is":
            return field.compare("is", draw(st.sampled_from([None, True, False])))
        case "like":
            pattern = draw(st.text("ab%_*\\(),.\" '", max_size=8).filter(_is_pattern))
            customer = ORDERS["customer"]
            return customer.like(pattern) if draw(st.booleans()) else customer.ilike(pattern)
        case _:
            operators: list[Operator] = ["eq", "neq", "gt", "gte", "lt", "lte"]
            return field.compare(draw(st.sampled_from(operators)), draw(VALUES[name]))


def _is_pattern(pattern: str) -> bool:
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 0


filters: st.SearchStrategy[Filter] = st.recursive(
    conditions(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: And(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Or(tuple(parts))),
        inner.map(lambda part: ~part),
    ),
    max_leaves=8,
).filter(lambda node: _depth(node) <= 8)


def _depth(node: Filter) -> int:
    match node:
        case Compare():
            return 1
        case Not():
            return 1 + _depth(node.part)
        case And() | Or():
            return 1 + max(map(_depth, node.parts))


queries = st.builds(
    Query,
    where=st.none() | filters,
    order=st.lists(
        st.tuples(st.sampled_from(["id", "due_at", "total"]), st.sampled_from(["asc", "desc"])),
        unique_by=lambda pair: pair[0],
    ).map(tuple),
    select=st.lists(st.sampled_from(["id", "total", "customer"]), unique=True).map(tuple),
    page_size=st.integers(1, 1000),
    page_token=st.none() | text,
)


@given(queries)
def test_the_json_form_reads_back_as_the_same_query(query: Query) -> None:
    """Filters, orders, selections and page tokens survive the wire."""
    assert Query.from_json(ORDERS, orjson.loads(orjson.dumps(query.to_json()))) == query


@given(queries)
def test_the_url_form_reads_back_as_the_same_query(query: Query) -> None:
    """Through percent-encoding, as it really travels."""
    params = parse_qsl(
        urlencode(query.to_params()), keep_blank_values=True, strict_parsing=bool(query.to_params())
    )
    again = Query.from_params(ORDERS, params)
    assert _flat(again.where) == _flat(query.where)
    assert (again.order, again.select, again.page_size) == (query.order, query.select, query.page_size)
    assert again.page_token == query.page_token


def _flat(where: Filter | None) -> Filter | None:
    """A conjunction of one is that one."""
    return where.parts[0] if isinstance(where, And) and len(where.parts) == 1 else where


@given(
    st.lists(
        st.tuples(st.sampled_from([*FILTERABLE, "or", "and", "not.or", "order", "page_size"]) | text, text)
    )
)
def test_hostile_parameters_give_the_documented_error(params: list[tuple[str, str]]) -> None:
    """Any parameters are a query or an InvalidQueryError with a pointer, never another error."""
    try:
        Query.from_params(ORDERS, params)
    except InvalidQueryError as error:
        assert error.pointer.startswith("/")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["and", "or", "not", "eq", "in", "is", "like", "zz"]), inner, max_size=2
        )
    ),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(["where", "order", "select", "page_size", "page_token", "x"]), json_values
    )
)
def test_hostile_bodies_give_the_documented_error(body: dict[str, Any]) -> None:
    """Any body is a query or an InvalidQueryError with a pointer, never another error."""
    try:
        Query.from_json(ORDERS, body)
    except InvalidQueryError as error:
        assert error.pointer.startswith("/")


def test_the_url_form_follows_postgrest() -> None:
    """The readers of PostgREST's manual find its grammar here."""
    query = Query(
        where=(ORDERS["status"] == "paid")
        & (ORDERS["total"] >= Decimal("100.00"))
        & ~ORDERS["customer"].like("a%")
        & ((ORDERS["quantity"] > 2) | ORDERS["due_at"].is_null())
        & ORDERS["customer"].in_(["a,b", "c"]),
        order=(("due_at", "desc"),),
    )
    assert query.to_params() == [
        ("status", "eq.paid"),
        ("total", "gte.100.00"),
        ("customer", "not.like.a*"),
        ("or", "(quantity.gt.2,due_at.is.null)"),
        ("customer", 'in.("a,b",c)'),
        ("order", "due_at.desc"),
    ]


def test_values_are_read_as_the_declared_type() -> None:
    """The text of a URL becomes an integer or a UUID by the field that it is compared with."""
    query = Query.from_params(
        ORDERS, [("quantity", "eq.5"), ("id", "eq.1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc")]
    )
    assert query.where == And(
        (Compare("quantity", "eq", 5), Compare("id", "eq", UUID("1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc")))
    )


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ([("password", "eq.x")], "/password"),
        ([("meta", "eq.x")], "/meta"),
        ([("quantity", "eq.many")], "/quantity"),
        ([("quantity", "regex.x")], "/quantity"),
        ([("quantity", "like.5")], "/quantity"),
        ([("quantity", "5")], "/quantity"),
        ([("customer", "like.50\\")], "/customer"),
        ([("status", "is.paid")], "/status"),
        ([("status", "in.(paid")], "/status"),
        ([("status", "in.(paid)x")], "/status"),
        ([("status", "in.open")], "/status"),
        ([("or", "(status.eq.paid")], "/or"),
        ([("or", "status.eq.paid")], "/or"),
        ([("or", "(password.eq.x)")], "/or"),
        ([("or", '(customer.eq."a\\')], "/or"),
        ([("or", "(status.eq.paid)x")], "/or"),
        ([("or", '(customer.eq."open)')], "/or"),
        ([("or", "()")], "/or"),
        ([("or", "(" * 50)], "/or"),
        ([("or", "(" + "and(" * 50)], "/or"),
        ([("order", "customer")], "/order"),
        ([("order", "total.up")], "/order"),
        ([("order", "total,total.desc")], "/order"),
        ([("order", "id," * 9)], "/order"),
        ([("order", "id"), ("order", "total")], "/order"),
        ([("select", "secret")], "/select"),
        ([("page_size", "0")], "/page_size"),
        ([("page_size", "1001")], "/page_size"),
        ([("page_size", "٣")], "/page_size"),
        ([("customer", f"eq.{number}") for number in range(101)], "/where"),
        ([("customer", f"in.({','.join('x' * 1001)})")], "/customer"),
        ([("or", "(" + "and(or(" * 6 + "id.is.null" + "))" * 6 + ")")], "/where"),
    ],
)
def test_what_the_resource_does_not_declare_is_refused(params: list[tuple[str, str]], pointer: str) -> None:
    """Fields, operators and options that don't exist are refused with a pointer to the parameter."""
    with pytest.raises(InvalidQueryError) as caught:
        Query.from_params(ORDERS, params)
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"filter": {}}, "/filter"),
        ({"where": []}, "/where"),
        ({"where": {"eq": ["quantity", None]}}, "/where/eq"),
        ({"where": {"eq": ["password", 1]}}, "/where/eq"),
        ({"where": {"and": [{"eq": ["quantity", 1]}, {"eq": ["quantity", "many"]}]}}, "/where/and/1/eq"),
        ({"where": {"and": []}}, "/where/and"),
        ({"where": {"$where": ["quantity", "sleep(1)"]}}, "/where/$where"),
        ({"where": {"in": ["quantity", 1]}}, "/where/in"),
        ({"where": {"not": 1}}, "/where/not"),
        ({"where": {"is": ["quantity", 5]}}, "/where/is"),
        ({"where": {"like": ["customer", 5]}}, "/where/like"),
        ({"order": "total"}, "/order"),
        ({"order": [["total"]]}, "/order"),
        ({"order": [["total", "up"]]}, "/order"),
        ({"select": [1]}, "/select"),
        ({"page_size": True}, "/page_size"),
        ({"page_token": 1}, "/page_token"),
    ],
)
def test_a_bad_body_is_refused_with_its_pointer(body: dict[str, Any], pointer: str) -> None:
    """The pointer leads to the member of the body that is wrong."""
    with pytest.raises(InvalidQueryError) as caught:
        Query.from_json(ORDERS, body)
    assert caught.value.pointer == pointer


def test_a_deep_tree_is_refused_before_it_exhausts_the_stack() -> None:
    """Five hundred levels are no RecursionError."""
    where: dict[str, Any] = {"eq": ["quantity", 1]}
    for _ in range(500):
        where = {"and": [where]}
    with pytest.raises(InvalidQueryError, match="nested"):
        Query.from_json(ORDERS, {"where": where})


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators of the conditions that were looked at."""
    operators: list[str] = []
    compare = Field.compare

    def counting(field: Field, operator: Operator, value: object, *, pointer: str = "") -> Compare:
        operators.append(operator)
        return compare(field, operator, value, pointer=pointer)

    monkeypatch.setattr(Field, "compare", counting)
    return operators


@pytest.mark.parametrize(
    "where",
    [
        {"or": [{"eq": ["quantity", 1]}] * 60_000},
        {"and": [{"or": [{"eq": ["quantity", 1]}] * 200}] * 200},
        {"and": [{"and": [{"or": [{"eq": ["quantity", 1]}] * 30}] * 30}] * 30},
        {"not": {"and": [{"not": {"lt": ["total", "1"]}}] * 5_000}},
    ],
    ids=["flat", "groups", "groups of groups", "negated"],
)
def test_a_large_tree_is_read_to_its_limit_and_no_further(where: dict[str, Any], compared: list[str]) -> None:
    """Each condition costs a look at its value: a caller pays for 100 of them at most, whatever it sends."""
    with pytest.raises(InvalidQueryError, match="more than 100 conditions"):
        Query.from_json(ORDERS, {"where": where})
    assert len(compared) == 100


def test_a_hundred_conditions_are_read() -> None:
    """The largest filter that is allowed goes through and back."""
    where = {"or": [{"eq": ["quantity", number]} for number in range(100)]}
    assert Query.from_json(ORDERS, {"where": where}).to_json()["where"] == where


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"order": [0] * 9}, "at most 8"),
        ({"select": [0] * 17}, "no more than 16 fields"),
        ({"where": {"in": ["quantity", ["x"] * 1001]}}, "at most 1000 values"),
        ({"where": {"like": ["customer", "%" * 1001]}}, "at most 1000 characters"),
    ],
)
def test_what_is_too_long_is_refused_before_it_is_read(body: dict[str, Any], limit: str) -> None:
    """The limit is named, and no value of the long list is validated."""
    with pytest.raises(InvalidQueryError, match=limit):
        Query.from_json(ORDERS, body)


@pytest.mark.parametrize(
    "params",
    [
        [("quantity", "eq.1")] * 800,
        [("or", f"({','.join(['quantity.eq.1'] * 500)})")],
        [("or", f"(and({','.join(['quantity.eq.1'] * 500)}),quantity.eq.2)")],
    ],
    ids=["side by side", "flat", "nested"],
)
def test_a_long_url_is_read_to_the_same_limit(params: list[tuple[str, str]], compared: list[str]) -> None:
    """The hundred and first condition is refused before it is compared with anything."""
    with pytest.raises(InvalidQueryError, match="more than 100 conditions"):
        Query.from_params(ORDERS, params)
    assert len(compared) == 100


@pytest.mark.parametrize("text", ["{%s}", "urn:uuid:%s", "%s "])
def test_a_filter_takes_a_uuid_in_its_own_form_only(text: str) -> None:
    """As bodies and paths do, in either case."""
    own = UUID(int=0xABC)
    assert (ORDERS["id"] == str(own).upper()).value == own
    assert ORDERS["id"].parse(str(own).upper()) == own
    for form in (text % own, own.hex):
        with pytest.raises(InvalidQueryError):
            ORDERS["id"].parse(form)
        with pytest.raises(InvalidQueryError):
            ORDERS["id"].in_([form])


def test_python_operators_build_the_tree() -> None:
    """Chains are flat, and a double negation is none."""
    quantity = ORDERS["quantity"]
    assert (quantity != 1) == Compare("quantity", "neq", 1)
    assert ((quantity < 1) | (quantity > 3) | (quantity <= 0)) == Or(
        (Compare("quantity", "lt", 1), Compare("quantity", "gt", 3), Compare("quantity", "lte", 0))
    )
    assert ~~(quantity >= 1) == Compare("quantity", "gte", 1)
    assert ORDERS["customer"].ilike("A%") == Compare("customer", "ilike", "A%")


def test_python_and_is_caught_before_it_drops_half_of_the_filter() -> None:
    """`a and b` would silently be `b`."""
    with pytest.raises(TypeError, match="&"):
        _ = (ORDERS["quantity"] == 1) and (ORDERS["quantity"] == 2)


def test_none_is_compared_with_is() -> None:
    """A comparison with None is refused and names is_null()."""
    with pytest.raises(InvalidQueryError, match="is_null"):
        _ = ORDERS["quantity"] == None  # noqa: E711


def test_an_undeclared_field_is_refused_where_the_filter_is_built() -> None:
    """The mistake shows in the client, not in the service."""
    with pytest.raises(InvalidQueryError, match="only by"):
        _ = ORDERS["password"]


def test_the_total_order_ends_with_the_id() -> None:
    """It is added where the order doesn't name it, and stays where and as the order names it."""
    assert Query().total_order == (("id", "asc"),)
    assert Query(order=(("total", "desc"),)).total_order == (("total", "desc"), ("id", "asc"))
    named = Query(order=(("id", "desc"), ("total", "asc")))
    assert named.total_order == named.order


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tags", [1]),
        ("tags", "a"),
        ("tags", [None]),
        ("tags", ["a"] * 1001),
        ("lines", ["one"]),
        ("lines", [1.5]),
        ("marks", [["a"]]),
        ("marks", [{"a": 1}]),
        ("steps", ["a"]),
        ("customer", ["a"]),
        ("meta.source", ["a"]),
    ],
)
@pytest.mark.parametrize("operator", ["contains", "overlaps"])
def test_what_looks_into_a_list_takes_its_elements(name: str, values: Any, operator: Operator) -> None:
    """Values of another type, and fields that are no lists of plain values, are refused and not just never found."""
    with pytest.raises(InvalidQueryError, match=name):
        ORDERS[name].compare(operator, values)
    with pytest.raises(InvalidQueryError):
        Query.from_json(ORDERS, {"where": {operator: [name, values]}})


TEXTS = ["100%", "a_b", "a\\b", "100 percent", "aXb", "100%!", "A_B"]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (ORDERS["customer"].starts_with("100%"), ["100%", "100%!"]),
        (ORDERS["customer"].ends_with("0%"), ["100%"]),
        (ORDERS["customer"].contains_text("_"), ["a_b", "A_B"]),
        (ORDERS["customer"].contains_text("\\"), ["a\\b"]),
        (ORDERS["customer"].starts_with("a_", ignore_case=True), ["a_b", "A_B"]),
        (ORDERS["customer"].ends_with("B", ignore_case=True), ["a_b", "a\\b", "aXb", "A_B"]),
        (ORDERS["customer"].contains_text("x", ignore_case=True), ["aXb"]),
        (ORDERS["customer"].contains_text(""), TEXTS),
    ],
)
def test_a_part_of_a_text_is_no_pattern(where: Filter, found: list[str]) -> None:
    """What a user types into a search field has no wildcards: `%`, `_` and backslashes are characters."""
    assert [each for each in TEXTS if fits(where, {"customer": each})] == found
    [(name, written)] = Query(where=where).to_params()
    assert Query.from_params(ORDERS, [(name, written)]).where == where
