"""Declarations of events and commands: what they say on the wire, and what contradicts itself."""

from typing import Any
from uuid import UUID

import pytest

from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import DeclarationError, UnknownEventTypeError, UnknownEventVersionError
from hybridkit.events import Command, Event, EventRegistry, registry
from hybridkit.ids import derived_id


class BookLent(Event, type="book.lent", version=3, key="book_id"):
    book_id: UUID
    reader: str


class SendReminder(Command, queue="reminder_tasks"):
    reader: str


BOOK_ID = UUID("1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc")


def lent() -> BookLent:
    return BookLent(book_id=BOOK_ID, reader="ada")


def test_a_declaration_carries_type_version_key_and_queue() -> None:
    """A command's type comes from the name of its class."""
    assert (BookLent.message_type, BookLent.message_version, BookLent.event_key) == (
        "book.lent",
        3,
        "book_id",
    )
    assert (SendReminder.message_type, SendReminder.queue) == ("command.send_reminder", "reminder_tasks")
    assert lent().ordering_key == str(BOOK_ID)


def test_an_event_without_a_key_has_no_order() -> None:
    """Its ordering key is None, and consumers run it beside others."""

    class ShopOpened(Event, type="shop.opened"):
        pass

    assert ShopOpened().ordering_key is None


def test_the_identity_is_made_once_and_belongs_to_the_object() -> None:
    """Publishing the same object twice is the same event; an equal object is another one."""
    first, second = lent(), lent()
    assert first.event_id == first.event_id
    assert first.timestamp == first.timestamp
    assert first.event_id != second.event_id
    assert first == second
    assert hash(first) == hash(second)


def test_inside_a_claim_a_rerun_makes_the_same_events_again() -> None:
    """Two equal events of one run stay two."""

    def handler() -> list[UUID]:
        with bind(RequestContext(claim=Claim("email_tasks:event:7"))):
            return [lent().event_id, lent().event_id]

    first = handler()
    assert handler() == first
    assert len(set(first)) == 2
    assert first[0] == derived_id("email_tasks:event:7", "emit book.lent#0")


def test_a_base_class_without_a_type_is_not_registered() -> None:
    """Its subclass with a type is."""

    class Audited(Event):
        actor: str

    class ShopClosed(Audited, type="shop.closed"):
        pass

    assert registry.newest("shop.closed") is ShopClosed
    assert Audited not in set(registry)


@pytest.mark.parametrize(
    "name", ["UserCreated", "user", "user-created.v1", "user..created", "a." + "b" * 130]
)
def test_a_type_that_is_not_dotted_snake_case_is_refused(name: str) -> None:
    """The thing comes first, and one word is not enough."""
    with pytest.raises(DeclarationError, match="lower-case words with dots"):
        type("Bad", (Event,), {"__module__": __name__}, type=name)


def test_a_command_without_a_queue_is_a_base_for_others() -> None:
    """It can't be sent, so it isn't registered."""

    class Audited(Command):
        actor: str

    assert Audited not in set(registry)


def test_a_key_must_be_a_field() -> None:
    """The declaration fails, not the first publish."""
    with pytest.raises(DeclarationError, match="no field 'isbn' to be its key"):

        class Keyless(Event, type="book.keyless", key="isbn"):
            pass


def test_a_version_starts_at_one() -> None:
    """Version 0 is refused at the declaration."""
    with pytest.raises(DeclarationError, match="at least 1, not 0"):

        class Early(Event, type="book.early", version=0):
            pass


def test_a_queue_name_is_snake_case() -> None:
    """It becomes the name of a queue at the broker."""
    with pytest.raises(DeclarationError, match="not in snake_case"):

        class Shout(Command, queue="Email-Tasks"):
            pass


def test_two_classes_cannot_be_the_same_version_of_one_type() -> None:
    """A consumer couldn't choose between them."""
    with pytest.raises(DeclarationError, match=r"are both 'book\.lent' version 3"):

        class Twin(Event, type="book.lent", version=3):
            pass


def test_a_class_that_is_declared_again_replaces_itself() -> None:
    """A module may be reloaded."""

    def declare() -> type[Event]:
        class Reloaded(Event, type="book.reloaded"):
            pass

        return Reloaded

    declare()
    again = declare()
    assert registry.newest("book.reloaded") is again


def test_upcasters_lead_as_far_as_they_go() -> None:
    """The newest version needs none."""
    own = EventRegistry()
    own.add(BookLent)
    own.add_upcaster("book.lent", 1, lambda data: data)
    own.add_upcaster("book.lent", 2, lambda data: data)
    message, steps = own.resolve("book.lent", 1)
    assert message is BookLent
    assert len(steps) == 2
    assert own.resolve("book.lent", 3) == (BookLent, ())


def test_a_class_registers_its_upcasters_and_leaves_them_functions() -> None:
    """The registry has them under the class's type, and a module may go on calling them."""

    class BookRebound(Event, type="book.rebound", version=3):
        colour: str

    @BookRebound.upcast(from_version=1)
    def name_the_colour(data: dict[str, Any]) -> dict[str, Any]:
        return {"colour": data["color"]}

    @BookRebound.upcast(from_version=2)
    def lower_the_colour(data: dict[str, Any]) -> dict[str, Any]:
        return {"colour": data["colour"].lower()}

    assert registry.resolve("book.rebound", 1) == (BookRebound, (name_the_colour, lower_the_colour))
    assert registry.resolve("book.rebound", 2) == (BookRebound, (lower_the_colour,))
    assert name_the_colour({"color": "Red"}) == {"colour": "Red"}
    with pytest.raises(DeclarationError, match="has an upcaster from version 2 already"):
        BookRebound.upcast(from_version=2)(lower_the_colour)
    for version in (0, 3, 4):
        with pytest.raises(DeclarationError, match=f"an upcaster from {version} has no use"):
            BookRebound.upcast(from_version=version)


def test_an_unknown_type_or_version_says_what_is_known() -> None:
    """The error tells a newer version from an older one without upcaster."""
    own = EventRegistry()
    own.add(BookLent)
    with pytest.raises(UnknownEventTypeError) as unknown:
        own.resolve("book.burnt", 1)
    assert unknown.value.event_type == "book.burnt"
    with pytest.raises(UnknownEventVersionError, match="newest known is 3") as newer:
        own.resolve("book.lent", 4)
    assert newer.value.newer
    with pytest.raises(UnknownEventVersionError) as older:
        own.resolve("book.lent", 2)
    assert not older.value.newer


def test_an_upcaster_that_leads_nowhere_is_refused() -> None:
    """One from the current version, and a second one for the same step."""
    with pytest.raises(DeclarationError, match="has no use"):
        BookLent.upcast(from_version=3)
    own = EventRegistry()
    own.add_upcaster("book.lent", 1, lambda data: data)
    with pytest.raises(DeclarationError, match="has an upcaster from version 1 already"):
        own.add_upcaster("book.lent", 1, lambda data: data)


def test_the_registry_lists_types_by_name_and_version() -> None:
    """In this order also where they were declared in another one."""

    class Later(Event, type="zoo.opened"):
        pass

    own = EventRegistry()
    own.add(Later)
    own.add(BookLent)
    assert list(own) == [BookLent, Later]
    assert repr(own) == "EventRegistry(['book.lent', 'zoo.opened'])"
