"""An aggregation's JSON form, and what it refuses."""

from typing import Any

import pytest
from pydantic import BaseModel

from hybridkit.errors import InvalidQueryError
from hybridkit.resources import (
    Aggregation,
    Record,
    Resource,
    average,
    count,
    distinct,
    largest,
    smallest,
    total,
)


class NewOrder(BaseModel):
    status: str
    price: int


class Order(NewOrder, Record):
    pass


ORDERS = Resource(
    "orders", record=Order, create=NewOrder, update=NewOrder, filterable=("status", "price"), sortable=()
)


def test_the_json_form_is_read_back_as_it_was() -> None:
    """Every function, and each member with another value than its default, survives the wire."""
    wanted = Aggregation(
        functions={
            "orders": count(),
            "kinds": distinct("status"),
            "revenue": total("price"),
            "mean": average("price"),
            "least": smallest("price"),
            "most": largest("price"),
        },
        group_by=("status",),
        where=ORDERS["price"] > 3,
        order=(("revenue", "desc"), ("status", "asc")),
        limit=5,
    )
    assert Aggregation.from_json(ORDERS, wanted.to_json()) == wanted


def test_what_is_at_its_default_is_left_out() -> None:
    """A body has only the members that say something."""
    assert Aggregation(functions={"orders": count()}).to_json() == {"functions": {"orders": ["count"]}}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"functions": {"n": ["count"]}, "having": {}}, "/having"),
        ({}, "/functions"),
        ({"functions": {}}, "/functions"),
        ({"functions": {f"n{number}": ["count"] for number in range(17)}}, "/functions"),
        ({"functions": {"N": ["count"]}}, "/functions/N"),
        ({"functions": {"n": ["count", "price"]}}, "/functions/n"),
        ({"functions": {"n": ["sum"]}}, "/functions/n"),
        ({"functions": {"n": ["$function", "price"]}}, "/functions/n"),
        ({"functions": {"n": ["sum", "id; drop table orders"]}}, "/functions/n"),
        ({"functions": {"status": ["count"]}, "group_by": ["status"]}, "/functions/status"),
        ({"functions": {"n": ["count"]}, "group_by": "status"}, "/group_by"),
        ({"functions": {"n": ["count"]}, "group_by": ["version"]}, "/group_by"),
        ({"functions": {"n": ["count"]}, "group_by": ["status"] * 9}, "/group_by"),
        ({"functions": {"n": ["count"]}, "order": {}}, "/order"),
        ({"functions": {"n": ["count"]}, "order": [["m", "desc"]]}, "/order"),
        ({"functions": {"n": ["count"]}, "order": [["n", "down"]]}, "/order"),
        ({"functions": {"n": ["count"]}, "order": [["n", "desc"], ["n", "asc"]]}, "/order"),
        ({"functions": {"n": ["count"]}, "limit": 1001}, "/limit"),
        ({"functions": {"n": ["count"]}, "limit": True}, "/limit"),
        ({"functions": {"n": ["count"]}, "where": {"eq": ["version", 1]}}, "/where/eq"),
    ],
)
def test_a_refusal_points_at_its_place(body: dict[str, Any], pointer: str) -> None:
    """The JSON pointer leads to the member that the resource doesn't allow."""
    with pytest.raises(InvalidQueryError) as caught:
        Aggregation.from_json(ORDERS, body)
    assert caught.value.pointer == pointer
