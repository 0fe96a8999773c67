"""Message classes whose JSON needs no check before it is published."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    computed_field,
    field_serializer,
    field_validator,
    model_validator,
)

from hybridkit.context import RequestContext
from hybridkit.errors import MalformedPayloadError
from hybridkit.events import Event, decode_envelope, encode_message
from hybridkit.events._plain_fields import MAX_TYPE_LISTS, plain_fields

CONTEXT = RequestContext(request_id="r")


class Plain(Event, type="plain.happened"):
    id: UUID
    text: str
    flag: bool = False
    number: int = 0
    maybe: str | None = None
    perhaps: UUID | None = None


class Texts(BaseModel):
    text: str


class Aliased(Texts):
    other: str = Field(alias="Other")


class Constrained(Texts):
    other: str = Field(max_length=3)


class Strict(Texts):
    other: Annotated[int, Field(strict=True)]


class Defaulted(Texts):
    other: list[str] = Field(default_factory=list)


class Fraction(Texts):
    other: float


class Timed(Texts):
    at: datetime


class Nested(Texts):
    other: Texts


class Recursive(Texts):
    other: "Recursive | None" = None


class Configured(Texts):
    model_config = ConfigDict(str_strip_whitespace=True)


class Open(Texts):
    model_config = ConfigDict(extra="allow")


class Validated(Texts):
    @field_validator("text")
    @classmethod
    def refuse(cls, text: str) -> str:
        return text


class Serialised(Texts):
    @field_serializer("text")
    def write(self, text: str) -> str:
        return text


class Whole(Texts):
    @model_validator(mode="after")
    def check(self) -> "Whole":
        return self


class Prepared(Texts):
    def model_post_init(self, context: Any) -> None: ...


class Initialised(Texts):
    def __init__(self, **values: Any) -> None:
        super().__init__(**values)


class Computed(Texts):
    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return 1


OTHERS: list[type[BaseModel]] = [
    Aliased,
    Constrained,
    Strict,
    Defaulted,
    Fraction,
    Timed,
    Nested,
    Recursive,
    Configured,
    Open,
    Validated,
    Serialised,
    Whole,
    Prepared,
    Initialised,
    Computed,
]


@pytest.mark.parametrize("model", OTHERS)
def test_a_class_with_anything_else_is_not_plain(model: type[BaseModel]) -> None:
    """A class whose JSON could be refused by its own validators is checked each time."""
    assert plain_fields(model) is None


def test_texts_ids_booleans_and_integers_are_plain() -> None:
    """Fields of these types, also optional ones and those with a default, make a class plain."""
    plain = plain_fields(Plain)
    assert plain is not None
    assert plain.have_numbers
    assert repr(plain) == "PlainFields(id, text, flag, number, maybe, perhaps)"
    assert not getattr(plain_fields(Texts), "have_numbers", True)


EVENTS = st.builds(
    Plain,
    id=st.uuids(),
    text=st.text(),
    flag=st.booleans(),
    number=st.integers(),
    maybe=st.none() | st.text(),
    perhaps=st.none() | st.uuids(),
)


@given(EVENTS)
def test_what_is_not_checked_is_read_as_it_was(event: Plain) -> None:
    """A plain event is read by a consumer with the values that were published."""
    assert decode_envelope(encode_message(event, service="s", context=CONTEXT)).data == event


ID = UUID(int=1)
construct: Any = Plain.model_construct
WRONG = {
    "another type": construct(id=ID, text=["a"]),
    "null where it may not be": construct(id=ID, text=None),
    "a text that is no id": construct(id="no id", text="a"),
    "a field that is missing": construct(id=ID),
    "a field that is missing, and another that is unknown": construct(id=ID).model_copy(
        update={"unknown": 1}
    ),
    "half a character": Plain(id=ID, text="\ud800"),
    "too many digits": Plain(id=ID, text="a", number=10**400),
}


@pytest.mark.parametrize("event", WRONG.values(), ids=WRONG)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_values_that_were_never_validated_are_checked(event: Plain) -> None:
    """A plain class says nothing about values that do not have its types: what no consumer could read is refused."""
    with pytest.raises(MalformedPayloadError):
        encode_message(event, service="s", context=CONTEXT)


def test_the_lists_of_types_are_bounded() -> None:
    """However many combinations of types fit, only some of them are remembered, and all others fit as well."""
    fields: dict[str, Any] = dict.fromkeys([f"f{number}" for number in range(8)], str | None)
    model = type("Wide", (BaseModel,), {"__annotations__": fields})
    plain = plain_fields(model)
    assert plain is not None
    for bits in range(256):
        values = {name: "a" if bits >> number & 1 else None for number, name in enumerate(fields)}
        assert plain.fit(model(**values))
    assert len(plain._fitting) == MAX_TYPE_LISTS


def test_an_envelope_has_its_members_in_their_order() -> None:
    """The envelope is compact JSON, with the members in the documented order and null for an unknown user."""
    event = Plain(id=ID, text="ü")
    event.identify_as(UUID(int=2), datetime(2025, 1, 15, 10, 30, 0, 120_000, tzinfo=UTC))
    assert encode_message(event, service='a"b', context=CONTEXT).decode() == (
        '{"event_type":"plain.happened","event_id":"00000000-0000-0000-0000-000000000002",'
        '"timestamp":"2025-01-15T10:30:00.120Z","service":"a\\"b","request_id":"r","user_id":null,'
        '"data":{"id":"00000000-0000-0000-0000-000000000001","text":"ü","flag":false,"number":0,"maybe":null,'
        '"perhaps":null}}'
    )
