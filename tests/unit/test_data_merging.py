"""Merge patches of documents that others have stored: the patch is judged, not what was there before it."""

from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit import Record, Resource
from hybridkit.dataservice._store._merging import merged
from hybridkit.dataservice._store._operations import Update
from hybridkit.errors import InvalidRequestError


class Leaf(BaseModel):
    size: int = 0
    note: str | None = None
    ratio: float | None = None
    leaves: "list[Leaf]" = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]


class NewTree(BaseModel):
    leaf: Leaf | None = None
    leaves: dict[str, Leaf] = {}
    pet: Cat | Dog | None = None


class Tree(NewTree, Record):
    pass


TREES = Resource("trees", record=Tree, create=NewTree, update=NewTree)


def patched(name: str, document: Any, patch: dict[str, Any]) -> Any:
    return merged(Update(resource=TREES, id=UUID(int=1), merges={name: patch}), name, document)


@pytest.mark.parametrize(
    "document",
    [
        {"size": 1, "others": [1, {"a": None}]},
        {"size": "many"},
        {"size": 1.5, "others": 1},
        {"leaves": [{"size": 2, "others": 1}, {"size": 3}]},
        {"ratio": float("inf")},
        {"leaves": [1]},
    ],
)
def test_what_others_have_stored_stays_and_is_no_fault_of_a_patch(document: dict[str, Any]) -> None:
    """A patch of another member is carried out, and nothing else of the document changes."""
    found = patched("leaf", document, {"note": "new"})
    assert found["note"] == "new"
    assert {name: found[name] for name in document if name != "leaves"} == {
        name: value for name, value in document.items() if name != "leaves"
    }
    for leaf, was in zip(
        found["leaves"] if "leaves" in document else [], document.get("leaves", []), strict=True
    ):
        assert leaf == was if not isinstance(was, dict) else was.items() <= leaf.items()
    nested = patched("leaves", {"a": document, "b": {}}, {"b": {"note": "new"}})
    assert nested["a"]["note"] is None if "note" in nested["a"] else nested["a"] == document
    assert nested["b"]["note"] == "new"


def test_a_document_of_another_kind_becomes_one_of_its_own() -> None:
    """What can't be merged into is replaced, as a merge patch has it."""
    others: tuple[Any, ...] = (None, 5, [], "text")
    assert [patched("leaf", document, {"size": 2})["size"] for document in others] == [2] * 4


@pytest.mark.parametrize(
    ("name", "document", "patch"),
    [
        ("pet", {"kind": "cat", "lives": 3}, {"kind": "dog"}),
        ("leaf", {"size": 1}, {"others": 1}),
        ("leaf", {"others": 1}, {"size": "many"}),
    ],
)
def test_what_a_patch_makes_wrong_is_refused(name: str, document: Any, patch: dict[str, Any]) -> None:
    """A problem that wasn't there before it is the caller's, whichever member it is at."""
    with pytest.raises(InvalidRequestError) as caught:
        patched(name, document, patch)
    assert [problem.pointer.startswith(f"/{name}/") for problem in caught.value.errors] == [True]
