"""A body beside what its model makes of it: whatever is dropped, rounded or taken for something else is found."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from hybridkit.codec import encode_json
from hybridkit.dataservice._http._bodies import closed, validate
from hybridkit.dataservice._store._losses import losses
from hybridkit.errors import InvalidRequestError


class Leaf(BaseModel):
    size: int = 0
    ratio: float | None = None
    cost: Decimal | None = None


class Pair(TypedDict):
    left: Leaf


@dataclass
class Plain:
    leaf: Leaf


class Aliased(BaseModel):
    full_name: str = Field(default="", validation_alias=AliasChoices("fullName", "name"))


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Shaped(BaseModel):
    size: int = 0

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        return {"size": value["breadth"]} if "breadth" in value else value


class Tree(BaseModel):
    leaf: Leaf | None = None
    leaves: list[Leaf] = []
    named: dict[str, Leaf] = {}
    either: int | Leaf | None = None
    trees: "list[Tree]" = []
    pair: Pair | None = None
    plain: Plain | None = None
    aliased: Aliased | None = None
    open: Open | None = None
    shaped: Shaped | None = None
    numbers: dict[int, Decimal] = {}
    owner: UUID | None = None
    at: datetime | None = None
    inexact: Decimal | None = Field(default=None, allow_inf_nan=True)
    document: Any = None


CLOSED = closed(Tree)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"bogus": 1}, "/bogus"),
        ({"leaf": {"bogus": 1}}, "/leaf/bogus"),
        ({"leaves": [{}, {"bogus": 1}]}, "/leaves/1/bogus"),
        ({"named": {"a/b": {"bogus": 1}}}, "/named/a~1b/bogus"),
        ({"either": {"bogus": 1}}, "/either/bogus"),
        ({"trees": [{"trees": [{"bogus": 1}]}]}, "/trees/0/trees/0/bogus"),
        ({"pair": {"left": {}, "bogus": 1}}, "/pair/bogus"),
        ({"pair": {"left": {"bogus": 1}}}, "/pair/left/bogus"),
        ({"plain": {"leaf": {"bogus": 1}}}, "/plain/leaf/bogus"),
        ({"plain": {"leaf": {}, "bogus": 1}}, "/plain/bogus"),
        ({"aliased": {"full_name": "a"}}, "/aliased/full_name"),
        ({"inexact": "NaN"}, "/inexact"),
        ({"inexact": "1e131072"}, "/inexact"),
        ({"leaf": {"ratio": "NaN"}}, "/leaf/ratio"),
        ({"leaf": {"cost": "1_0"}}, "/leaf/cost"),
        ({"leaf": {"cost": 0.12345678901234567}}, "/leaf/cost"),
        ({"leaf": {"size": True}}, "/leaf/size"),
        ({"numbers": {"1": "\u0661"}}, "/numbers/1"),
        ({"owner": "{1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc}"}, "/owner"),
        ({"at": "1700000000"}, "/at"),
        ({"document": 2**64}, "/document"),
        ({"document": [{"n": -(2**63) - 1}]}, "/document/0/n"),
    ],
)
def test_what_a_model_would_lose_is_pointed_at(body: dict[str, Any], pointer: str) -> None:
    """Undeclared members and changed values are found, however deeply they are nested."""
    with pytest.raises(InvalidRequestError) as refused:
        validate(CLOSED, encode_json(body))
    assert [problem.pointer for problem in refused.value.errors] == [pointer]


@pytest.mark.parametrize(
    "body",
    [
        {"aliased": {"fullName": "a"}},
        {"aliased": {"name": "a"}},
        {"open": {"anything": [1]}},
        {"shaped": {"breadth": 1}},
        {"numbers": {"1": "1.50", "2": 3}},
        {"owner": "1F1E54A2-F5D4-612B-8824-DDCDFEBDD6FC"},
        {"at": "2026-01-01T00:00:00"},
        {"leaf": {"cost": 10**40, "ratio": 1}},
        {"document": {"a": [2**64 - 1, -(2**63), None, 1.5]}},
    ],
    ids=str,
)
def test_what_is_kept_is_taken(body: dict[str, Any]) -> None:
    """Aliases, open models, other spellings of one value and exact numbers lose nothing."""
    validate(CLOSED, encode_json(body))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).filter(lambda value: "inf" not in repr(value))
)
def test_a_document_of_any_form_loses_nothing(value: Any) -> None:
    """No value is reported where a document is compared with itself."""
    assert list(losses(value, value)) == []
