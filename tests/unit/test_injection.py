"""Handlers get their arguments by type, and a mistake is named with its parameter."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from hybridkit._injection import InjectionPlan, Wanted, bare_type, plan_injection
from hybridkit.errors import DeclarationError

if TYPE_CHECKING:
    from decimal import Decimal


class Database: ...


class Mailer: ...


type Aliased = Annotated[Database, "found through the alias"]


async def handler(database: Database, *, mailer: Mailer) -> None: ...


def test_arguments_are_found_by_type() -> None:
    """Positional and keyword-only parameters alike are passed by name."""
    database, mailer = Database(), Mailer()
    arguments = plan_injection(handler).arguments({Mailer: mailer, Database: database, int: 1})
    assert arguments == {"database": database, "mailer": mailer}


@pytest.mark.parametrize(
    "annotation",
    [Database, Annotated[Database, 1], Aliased, Annotated[Aliased, 2], "Database", "Aliased"],
    ids=["plain", "annotated", "alias", "annotated alias", "text", "text of an alias"],
)
def test_an_alias_stands_for_its_type(annotation: Any) -> None:
    """In every form that an annotation can have, also as a text."""

    def wants(value: object) -> None: ...

    wants.__annotations__["value"] = annotation
    assert plan_injection(wants).wanted == (Wanted("value", Database),)


def test_a_default_stays_where_nothing_provides_the_type() -> None:
    """It gives way where something does."""

    def wants(database: Database, number: int = 7) -> None: ...

    plan = plan_injection(wants)
    assert plan.missing({Database}) == ()
    assert set(plan.arguments({Database: Database()})) == {"database"}
    assert plan.arguments({Database: Database(), int: 8})["number"] == 8


def test_what_is_missing_is_named_at_once() -> None:
    """One error lists every parameter without a provider, and what there is."""
    with pytest.raises(
        DeclarationError, match=r"database: Database, mailer: Mailer for handler.*provided are int"
    ):
        plan_injection(handler).arguments({int: 1})
    with pytest.raises(DeclarationError, match="no types at all"):
        plan_injection(handler).arguments({})


def test_parameters_of_others_are_left_alone() -> None:
    """Aiogram passes its own arguments by name; their annotations don't matter."""

    def wants(message, database: Database) -> None:  # type: ignore[no-untyped-def]
        ...

    assert plan_injection(wants, skip={"message"}).wanted == (Wanted("database", Database),)


def no_annotation(value) -> None: ...  # type: ignore[no-untyped-def]


def positional_only(value: Database, /) -> None: ...


def star(*values: Database) -> None: ...


def unresolvable(value: "Decimal") -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_annotation, "'value' of no_annotation has no annotation"),
        (positional_only, "'value' of positional_only can't be passed by name"),
        (star, "'values' of star can't be passed by name"),
        (
            unresolvable,
            r"'value' of unresolvable: the annotation 'Decimal' can't be resolved .*TYPE_CHECKING",
        ),
    ],
)
def test_a_mistake_names_the_parameter(function: Callable[..., Any], words: str) -> None:
    """When the handler is registered, and not at its first call."""
    with pytest.raises(DeclarationError, match=words):
        plan_injection(function)


def test_methods_partials_and_callable_objects_have_annotations_too() -> None:
    """What a partial has filled already is no longer required."""

    class Service:
        def method(self, database: "Database") -> None: ...

        def __call__(self, mailer: "Mailer") -> None: ...

    assert plan_injection(Service().method).wanted == (Wanted("database", Database),)
    assert plan_injection(Service()).wanted == (Wanted("mailer", Mailer),)
    partial = functools.partial(functools.partial(handler), mailer=Mailer())
    assert plan_injection(partial) == InjectionPlan(
        "handler", (Wanted("database", Database), Wanted("mailer", Mailer, optional=True))
    )


def test_names_of_an_enclosing_function_resolve_where_they_are_used() -> None:
    """A class inside a test is such a name."""

    class Local: ...

    def wants(value: "Local") -> type:
        return Local

    assert plan_injection(wants).wanted == (Wanted("value", Local),)


def test_a_wrapped_function_is_looked_through() -> None:
    """A decorator with `functools.wraps` hides nothing."""

    @functools.wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert [want.name for want in plan_injection(wrapper).wanted] == ["database", "mailer"]


def test_a_bare_type_is_itself() -> None:
    """A generic keeps its parameters."""
    assert bare_type(Database) is Database
    assert bare_type(list[int]) == list[int]


def test_a_parameter_shows_as_it_is_written() -> None:
    """Messages quote it so."""
    assert str(Wanted("values", list[int])) == "values: list[int]"
