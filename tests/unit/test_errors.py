"""The error tree is drawn in the module's docstring; the drawing is what the classes are."""

import re

import pytest

from hybridkit import errors
from hybridkit.contract import Problem
from hybridkit.errors import DeclarationError, FieldProblem, HybridkitError, RuleViolationError
from hybridkit.errors._codes import error_for_code


def test_the_drawing_is_the_tree() -> None:
    """Every line of the drawing is an edge between two classes, and no class is missing."""
    lines = (errors.__doc__ or "").splitlines()
    found = [match for line in lines if (match := re.match(r"([│├└─ ]*)([A-Z]\w+Error)\b", line))]
    drawn = [(len(match[1]) // 4, match[2]) for match in found]
    path: list[str] = []
    edges: set[tuple[str, str]] = set()
    for depth, name in drawn:
        path = [*path[:depth], name]
        if depth:
            edges.add((path[depth - 1], name))
    real = {
        (base.__name__, error.__name__)
        for error in _tree(HybridkitError)
        for base in error.__bases__
        if issubclass(base, HybridkitError)
    }
    assert edges == real


def test_every_error_is_public() -> None:
    """`__all__` has each class of the tree, and nothing else but `FieldProblem`."""
    others = {"HybridkitError", "FieldProblem"}
    assert {error.__name__ for error in _tree(HybridkitError)} | others == set(errors.__all__)


def test_errors_split_by_what_the_caller_can_do() -> None:
    """Each error is of exactly one kind, and the kind decides whether it can be repeated."""
    for error in _tree(HybridkitError):
        branches = {"TemporaryError", "RejectedError", "MisuseError", "ResponseError", "OutcomeUnknownError"}
        assert len(branches & {base.__name__ for base in error.__mro__}) == 1
        assert error.retryable == issubclass(error, errors.TemporaryError | errors.OutcomeUnknownError)


def test_a_missing_extra_says_what_to_install_and_is_an_import_error() -> None:
    """Code that catches `ImportError` around an optional import catches it."""
    error = errors.MissingExtraError("hybridkit.adapters.aiogram", extra="aiogram")
    assert 'pip install "hybridkit[aiogram]"' in str(error)
    assert isinstance(error, ImportError)


def test_settings_problems_are_listed_one_a_line() -> None:
    """The message has all problems at once, for people who read it in a terminal."""
    error = errors.SettingsError("the configuration is unusable", problems=["A: missing", "B: too short"])
    assert str(error) == "the configuration is unusable\n  - A: missing\n  - B: too short"


def test_a_field_problem_is_equal_by_pointer_and_code() -> None:
    """Pointer and code make it equal; the words are for people, and the field's value is nowhere."""
    error = FieldProblem("/email", "missing", "Field required")
    assert error == FieldProblem("/email", "missing")
    assert hash(error) == hash(FieldProblem("/email", "missing"))
    assert error != "x"
    assert str(error) == "/email: Field required"
    assert str(FieldProblem("", "missing")) == "/: missing"
    assert repr(error) == "FieldProblem(pointer='/email', code='missing')"


@pytest.mark.parametrize(
    ("code", "expected"),
    [("NOT_FOUND", errors.NotFoundError), ("VALIDATION", errors.InvalidRequestError), ("TEAPOT", None)],
)
def test_a_problem_code_finds_its_class(code: str, expected: type[HybridkitError] | None) -> None:
    """A code that several classes have finds the most general one, an unknown code none."""
    assert error_for_code(code) is expected


class ShelfFullError(RuleViolationError):
    code = "SHELF_FULL"


@pytest.mark.parametrize("code", [None, "", "shelf_full", "SHELF-FULL", "S" * 64, "9_LIVES"])
def test_a_rule_needs_a_code_of_its_own(code: str | None) -> None:
    """Without one a caller could not tell two rules apart."""
    with pytest.raises(DeclarationError, match="Lax needs a code of its own in upper snake case"):
        type("Lax", (RuleViolationError,), {} if code is None else {"code": code})


@pytest.mark.parametrize("code", ["NOT_FOUND", "RULE_VIOLATION", "UNIQUE_VIOLATION", "SHELF_FULL"])
def test_a_code_means_one_error(code: str) -> None:
    """A rule can't take the code of another one, nor of the contract: a client would raise the wrong class."""
    with pytest.raises(DeclarationError, match=f"has the code '{code}' already"):
        type("Second", (RuleViolationError,), {"code": code})


def test_a_rule_is_told_to_the_caller_by_class_code_and_place() -> None:
    """The class arrives where it is known; elsewhere, in a client without it, its code does."""
    raised = ShelfFullError("no place for another book", errors=[FieldProblem("/shelf", "full", "is full")])
    problem = Problem.from_error(raised, instance="/books", request_id="r")
    assert (problem.status, problem.code, problem.retryable) == (409, "SHELF_FULL", False)
    again = problem.to_error()
    assert type(again) is ShelfFullError
    assert str(again) == "no place for another book"
    assert again.errors == raised.errors

    elsewhere = problem.model_copy(update={"code": "UNHEARD_OF"}).to_error()
    assert type(elsewhere) is RuleViolationError
    assert (elsewhere.code, str(elsewhere)) == ("UNHEARD_OF", "no place for another book")
    assert RuleViolationError.code == "RULE_VIOLATION"


def test_a_rule_with_a_constructor_of_its_own_arrives_with_its_message() -> None:
    """A client can't know what the constructor took; class, code and message are there."""

    class BookLentError(RuleViolationError):
        code = "BOOK_LENT"

        def __init__(self, title: str) -> None:
            super().__init__(f"{title} is lent out")

    again = Problem.from_error(BookLentError("Emma"), instance="/loans", request_id="r").to_error()
    assert type(again) is BookLentError
    assert str(again) == "Emma is lent out"


def _tree(root: type[HybridkitError]) -> set[type[HybridkitError]]:
    """Every class below the root that the library itself defines."""
    below: set[type[HybridkitError]] = set()
    for error in root.__subclasses__():
        if error.__module__ == errors.__name__:
            below |= {error} | _tree(error)
    return below
