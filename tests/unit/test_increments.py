"""An increment's sum is exact, of its field's type and within its bounds, or refused."""

from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator

from hybridkit.codec import Timestamp
from hybridkit.dataservice._store._increments import incremented
from hybridkit.dataservice._store._operations import Update
from hybridkit.errors import InvalidRequestError
from hybridkit.resources import Record, Resource

type Money = Annotated[Decimal, Field(max_digits=12, decimal_places=2)]


class NewStock(BaseModel):
    count: int = 0
    bounded: int = Field(default=0, le=10)
    maybe: Annotated[int, Field(ge=-5)] | None = None
    weight: float = 0.0
    price: Decimal | None = None
    money: Money | None = None
    mixed: int | float | None = None
    anything: Any = None
    flag: bool | None = None
    at: Timestamp | None = None
    name: str | None = None
    details: dict[str, Any] | None = None


class Stock(NewStock, Record):
    pass


class StockChanges(BaseModel):
    name: str  # a change as a whole needs it, an increment doesn't
    count: int | None = Field(default=None, ge=0)
    price: Decimal | None = None
    weight: float | None = None

    @field_validator("weight")
    @classmethod
    def _is_no_thirteen(cls, weight: float | None) -> float | None:
        if weight == 13:
            raise ValueError("unlucky")
        return weight


STOCKS = Resource("stocks", record=Stock, create=NewStock, update=StockChanges)


def added(name: str, value: Any, amount: float, **more: Any) -> Any:
    return incremented(Update(resource=STOCKS, id=1, increment={name: amount}, **more), name, value)


@pytest.mark.parametrize(
    ("name", "value", "amount", "total"),
    [
        ("count", 1, 2, 3),
        ("count", None, 2, 2),
        ("count", 1, 2.0, 3),
        ("count", 2**60 + 1, -1.0, 2**60),
        ("weight", 1.5, 1, 2.5),
        ("weight", 1, 1, 2.0),
        ("price", None, 0.1, Decimal("0.1")),
        ("price", Decimal("1.10"), 2, Decimal("3.10")),
        ("price", 1.1, 0.1, Decimal("1.2")),  # what an older version has stored
        ("money", Decimal("1.10"), 0.05, Decimal("1.15")),
        ("mixed", 1, 2, 3),
        ("mixed", 1, 0.5, 1.5),
        ("anything", Decimal(1), 0.5, Decimal("1.5")),
    ],
)
def test_a_sum_has_the_type_of_its_field(name: str, value: Any, amount: float, total: Any) -> None:
    """An integer stays one, a decimal is exact, and no value counts as 0."""
    found = added(name, value, amount)
    assert (found, type(found)) == (total, type(total))


@pytest.mark.parametrize(
    ("name", "value", "amount"),
    [
        ("count", 1, 0.5),
        ("count", 2.5, 1),  # what an older version has stored
        ("count", 1, -2),  # the update model's bound
        ("count", 2**63 - 1, 1),
        ("count", 2**60 + 1, 0.5),
        ("count", 0, float("nan")),
        ("bounded", 10, 1),  # the record's bound
        ("maybe", None, -6),
        ("weight", 1e308, 1e308),
        ("weight", 12, 1),  # what the update model checks
        ("weight", float("inf"), 1),
        ("price", Decimal("NaN"), 1),
        ("price", Decimal("1.10"), float("inf")),
        ("price", Decimal("1e600"), 1),
        ("money", Decimal("1.10"), 0.005),
        ("mixed", 2**63 - 1, 1),
        ("mixed", 10**400, 0.5),
        ("anything", "a", 1),
        ("anything", True, 1),
        ("flag", None, 1),
        ("flag", True, 1),
        ("at", None, 1),
        ("name", None, 1),
        ("details", None, 1),
        ("id", None, 1),
    ],
)
def test_a_sum_that_the_field_cannot_have_is_refused(name: str, value: Any, amount: float) -> None:
    """Bounds, fractions of integers, overflows and fields without numbers are refused with a pointer."""
    with pytest.raises(InvalidRequestError) as caught:
        added(name, value, amount)
    assert {problem.pointer for problem in caught.value.errors} <= {f"/increment/{name}", f"/{name}"}


@pytest.mark.parametrize("member", ["changes", "merges"])
def test_a_field_is_not_set_and_incremented(member: str) -> None:
    """Neither a change nor a merge of the same field may stand beside its increment."""
    with pytest.raises(InvalidRequestError) as caught:
        added("anything", 1, 1, **{member: {"anything": {}}})
    assert caught.value.errors[0].code == "set_and_incremented"


@given(value=st.integers(0, 2**63 - 1), amount=st.integers(-(2**64), 2**64))
@example(value=2**63 - 1, amount=0)
def test_integers_are_exact_or_refused(value: int, amount: int) -> None:
    """A sum is the mathematical one within the field's bounds and 64 bits; nothing is rounded."""
    if 0 <= value + amount < 2**63:
        assert added("count", value, amount) == value + amount
    else:
        with pytest.raises(InvalidRequestError):
            added("count", value, amount)


@given(value=st.decimals(allow_nan=False, allow_infinity=False, places=4), amount=st.integers(-100, 100))
def test_decimals_are_exact(value: Decimal, amount: int) -> None:
    """A decimal of any length grows by exactly the amount."""
    assert Fraction(added("price", value, amount)) == Fraction(value) + amount
