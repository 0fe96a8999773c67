"""Members of nested models that are called otherwise than their fields, computed, or keyed by what is no text."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from hybridkit import Record, Resource
from hybridkit.testing import FakeDataService


class Label(BaseModel):
    text: str = Field(default="none", alias="labelText")
    language: str | None = None


class Size(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    width: int = Field(default=1, alias="w")
    height: int = 1

    @computed_field  # type: ignore[prop-decorator] # https://github.com/python/mypy/issues/1362
    @property
    def area(self) -> int:
        """Follows from the others."""
        return self.width * self.height


class NewBox(BaseModel):
    label: Label | None = None
    size: Size | None = None
    stock: dict[int, int] | None = None


class Box(NewBox, Record):
    pass


BOXES = Resource("boxes", record=Box, create=NewBox, update=NewBox, filterable=("size.w",))


def label(text: str) -> Label:
    return Label.model_validate({"labelText": text})


def size(**values: int) -> Size:
    """By the names of its fields, which it takes too."""
    return Size.model_validate(values)


async def test_a_member_with_an_alias_comes_back_as_it_went() -> None:
    """A client reads in a nested model what it wrote, not the defaults of members that it can't find."""
    async with FakeDataService({BOXES}).postgres_client(service="tests") as client:
        new = NewBox(label=label("books"), size=size(width=2, height=3), stock={7: 1})
        made = await client.create(BOXES, new)
        read = await client.get(BOXES, made.id)
        found = await client.find(BOXES).where(BOXES["size.w"] == 2).first()
    assert new.model_dump() == read.model_dump(include=set(NewBox.model_fields))
    assert found == read


async def test_a_patch_of_a_document_changes_what_it_names_only() -> None:
    """By whichever of its names a member is patched, the others stay, and what is computed follows."""
    async with FakeDataService({BOXES}).postgres_client(service="tests") as client:
        made = await client.create(BOXES, NewBox(label=label("books"), size=size(width=2, height=3)))
        wider = await client.update(BOXES, made, NewBox(size=size(width=5)))
        named = await client.update(BOXES, wider, NewBox(label=Label(language="en"), stock={1: 2}))
    assert wider.size is not None
    assert (wider.size.width, wider.size.height, wider.size.area) == (5, 3, 15)
    assert named.label == Label.model_validate({"labelText": "books", "language": "en"})
    assert named.stock == {1: 2}


async def test_a_record_as_it_was_read_can_be_written_again() -> None:
    """Nothing is shown in a document that a write of the same document refuses."""
    fake = FakeDataService({BOXES})
    async with fake.postgres_client(service="tests") as client:
        made = await client.create(BOXES, NewBox(label=label("books"), size=size(width=2), stock={1: 1}))
        shown: dict[str, Any] = made.model_dump(include=set(NewBox.model_fields), by_alias=True)
        again = await client.replace(BOXES, made, NewBox.model_validate(shown))
    assert again.model_dump(include=set(NewBox.model_fields)) == made.model_dump(
        include=set(NewBox.model_fields)
    )
