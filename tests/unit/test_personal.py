"""The marks of personal data, and their check at declaration."""

from enum import StrEnum
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field
from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit._personal import Personal, PersonalField, personal_fields
from hybridkit.dataservice import RecordColumns
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.errors import DeclarationError
from hybridkit.events import Event
from hybridkit.resources import Record, Resource
from hybridkit.sagas import Saga

type Marked = Annotated[str, Personal("user_id")]
type Email = Annotated[str | None, Personal("user_id")]


def test_marked_fields_are_found_with_their_names_and_blanks() -> None:
    """A nullable field becomes null, any other its default, under every name that JSON may have for it."""

    class Profile(BaseModel):
        user_id: str = Field(alias="userId")
        email: Email
        nickname: Annotated[str, Personal("user_id")] = ""
        mail: Annotated[str | None, Personal("user_id", formerly=("e_mail",))] = Field(None, alias="eMail")
        city: str = ""

    assert personal_fields(Profile) == (
        PersonalField("email", ("email",), "user_id", "user_id", "userId", None),
        PersonalField("nickname", ("nickname",), "user_id", "user_id", "userId", ""),
        PersonalField("mail", ("eMail", "e_mail"), "user_id", "user_id", "userId", None),
    )


class Address(BaseModel):
    street: Annotated[str | None, Personal("user_id")] = None
    user_id: str = ""


class Node(BaseModel):
    child: "Node | None" = None
    name: str = ""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"email": (Annotated[str, Personal("user_id")], ...)}, "nullable"),
        ({"email": (Annotated[list[str], Personal("user_id")], Field(default_factory=list))}, "nullable"),
        ({"email": (Annotated[object, Personal("user_id")], object())}, "no JSON form"),
        ({"email": (Annotated[str | None, Personal("owner_id")], None)}, "no field 'owner_id'"),
        ({"user_id": (Annotated[str | None, Personal("user_id")], None)}, "can't be erased"),
        ({"version": (Annotated[int | None, Personal("user_id")], None)}, "only the data service"),
        ({"email": (Marked | None, None)}, "inside of its type"),
        ({"email": (list[Annotated[str, Personal("user_id")]], [])}, "inside of its type"),
        ({"address": (Address | None, None)}, "inside of its type"),
        ({"email": (Annotated[str | None, Personal("user_id"), Personal("id")], None)}, "2 marks"),
    ],
    ids=[
        "required",
        "factory",
        "no_json",
        "no_subject",
        "itself",
        "system",
        "union",
        "list",
        "model",
        "twice",
    ],
)
def test_a_mark_that_could_not_be_followed_is_refused(fields: dict[str, Any], said: str) -> None:
    """A mark that `hybridkit forget` couldn't follow is refused where it is declared."""
    names = {"user_id": str, **{name: kind for name, (kind, _) in fields.items()}}
    values = {name: default for name, (_, default) in fields.items() if default is not ...}
    model = type("Profile", (BaseModel,), {"__annotations__": names, **values})
    with pytest.raises(DeclarationError, match=said):
        personal_fields(model)


def test_a_model_that_contains_itself_is_read_to_its_end() -> None:
    """A model that refers to itself has an end, and no marks."""
    assert personal_fields(Node) == ()


def test_events_and_records_are_checked_at_declaration() -> None:
    """A mark on a field without a blank stops the import of the module that declares it."""
    with pytest.raises(DeclarationError, match="nullable"):

        class Invited(Event, type="personal_test.invited"):
            user_id: str
            email: Annotated[str, Personal("user_id")]

    class Guest(Record[str]):
        email: Annotated[str, Personal("user_id", field="id")]

    class NewGuest(BaseModel):
        email: str

    with pytest.raises(DeclarationError, match="nullable"):
        Resource("guests", record=Guest, create=NewGuest, update=NewGuest)


class Wait(StrEnum):
    REPLY = "reply"


def test_the_data_of_a_saga_is_checked_at_declaration() -> None:
    """A mark in a saga's memory that could not be erased is refused where the saga is declared."""

    class Data(BaseModel):
        user_id: str
        email: Annotated[str, Personal("user_id")]

    with pytest.raises(DeclarationError, match="nullable"):
        Saga("personal_test.invite", data=Data, states=Wait, key="user_id")


def test_a_column_that_can_not_be_erased_is_refused() -> None:
    """A column that may not be null can't hold what an erased field becomes, which the start says."""

    class NewGuest(BaseModel):
        email: str | None = None

    class Guest(NewGuest, Record[str]):
        email: Annotated[str | None, Personal("user_id", field="id")] = None

    class Base(DeclarativeBase):
        pass

    class GuestTable(RecordColumns, Base):
        __tablename__ = "guests"
        id: Mapped[str] = mapped_column(Text, primary_key=True)
        email: Mapped[str]

    with pytest.raises(DeclarationError, match="NOT NULL"):
        ResourceTable(Resource("guests", record=Guest, create=NewGuest, update=NewGuest), GuestTable)


def test_the_key_of_an_event_is_not_personal() -> None:
    """The field that keeps events in order stays, so it can't be marked."""
    with pytest.raises(DeclarationError, match="key"):

        class Invited(Event, type="personal_test.invited_by_email", key="email"):
            user_id: str
            email: Annotated[str | None, Personal("user_id")] = None
