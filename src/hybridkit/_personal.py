"""Marks of personal data on the fields of models, and their check at declaration.

`hybridkit.streams` exports `Personal`; what forgets a person reads the marks with `personal_fields`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeAliasType, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_jsonable_python

from hybridkit.errors import DeclarationError


@dataclass(frozen=True, slots=True)
class Personal:
    """The mark of a field that holds data about a person, so that `hybridkit forget` can erase it.

    It stands on the field itself, which is nullable or has a default; that is what an erased field holds:
    `email: Annotated[str | None, Personal("user_id")]`, or `name: Annotated[str, Personal("user_id")] = ""`.

    Attributes:
        subject: the kind of id by which a person is forgotten: `user_id` for `hybridkit forget user_id=…`.
        field: the field of the same model that has the id; by default the one that is called as `subject`. A record of
            the person itself has `id`: `Personal("user_id", field="id")`.
        formerly: the names that the marked field had in earlier versions of the model, whose data may still be stored.
    """

    subject: str
    field: str | None = None
    formerly: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PersonalField:
    """A marked field.

    Attributes:
        name: its name in Python.
        names: the names under which JSON may have it: its alias or name, and those of earlier versions.
        subject: the kind of id by which the person is forgotten.
        key: the name in Python of the field that has the id of the person.
        key_name: the same as JSON has it.
        blank: the JSON value of an erased field: null where the field may be null, otherwise its default.
    """

    name: str
    names: tuple[str, ...]
    subject: str
    key: str
    key_name: str
    blank: Any


def personal_fields(model: type[BaseModel]) -> tuple[PersonalField, ...]:
    """Return the marked fields of a model; of one that waits for a class that is declared later, those that are known.

    Raises:
        DeclarationError: a mark names a field that the model doesn't have, stands on a field that is neither nullable
            nor has a default, or stands inside of a type, where it would be overlooked.
    """
    return _fields_of(model) if model.__pydantic_complete__ else _fields_of.__wrapped__(model)


@cache
def _fields_of(model: type[BaseModel]) -> tuple[PersonalField, ...]:
    found = [_personal_field(model, name, info) for name, info in model.model_fields.items()]
    return tuple(field for field in found if field is not None)


def _personal_field(model: type[BaseModel], name: str, info: FieldInfo) -> PersonalField | None:
    where = f"{model.__name__}.{name}"
    annotation, metadata = _bare(info.annotation)
    marks = [mark for mark in (*info.metadata, *metadata) if isinstance(mark, Personal)]
    if _is_marked_within(annotation, frozenset({model})):
        raise DeclarationError(
            f"{where}: Personal stands inside of its type, where a part can't be erased by itself; mark the whole"
            ' field: Annotated[... | None, Personal("user_id")]'
        )
    if not marks:
        return None
    if len(marks) > 1:
        raise DeclarationError(f"{where}: it has {len(marks)} marks Personal, and belongs to one person")
    mark = marks[0]
    key = mark.field or mark.subject
    if key not in model.model_fields:
        raise DeclarationError(
            f"{where}: {model.__name__} has no field {key!r} with the id of the person; name it:"
            f' Personal({mark.subject!r}, field="...")'
        )
    if key == name:
        raise DeclarationError(f"{where}: the id of the person can't be erased with the person's data")
    if name in {"id", "version", "created_at", "updated_at", "etag"}:
        raise DeclarationError(f"{where}: only the data service writes this field, so it can't be erased")
    return PersonalField(
        name=name,
        names=(_json_name(info, name), *mark.formerly),
        subject=mark.subject,
        key=key,
        key_name=_json_name(model.model_fields[key], key),
        blank=_blank(where, annotation, info),
    )


def _blank(where: str, annotation: Any, info: FieldInfo) -> Any:
    if _is_nullable(annotation):
        return None
    if info.is_required() or info.default_factory is not None:
        raise DeclarationError(
            f'{where}: a personal field is nullable (`str | None`) or has a default (`= ""`), which an erased one holds'
        )
    try:
        return to_jsonable_python(info.default)
    except PydanticSerializationError as error:
        raise DeclarationError(
            f"{where}: its default has no JSON form, so it can't be stored: {error}"
        ) from None


def _json_name(info: FieldInfo, name: str) -> str:
    return info.serialization_alias or info.alias or name


def _is_nullable(annotation: Any) -> bool:
    bare, _ = _bare(annotation)
    if bare is None or bare is NoneType or bare is Any:
        return True
    if isinstance(bare, UnionType) or get_origin(bare) is Union:
        return any(map(_is_nullable, get_args(bare)))
    return False


def _bare(annotation: Any) -> tuple[Any, list[object]]:
    """Return an annotation without its aliases and `Annotated`, and the metadata that stood there."""
    metadata: list[object] = []
    while True:
        if isinstance(annotation, TypeAliasType):
            annotation = annotation.__value__
        elif get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            metadata += more
        else:
            return annotation, metadata


def _is_marked_within(annotation: Any, seen: frozenset[type[BaseModel]]) -> bool:
    """Return whether a part of a type has a mark: of its arguments, or a field of a model among them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return False
        fields = annotation.model_fields.values()
        return any(
            _has_mark(info.metadata) or _part_is_marked(info.annotation, seen | {annotation})
            for info in fields
        )
    return any(_part_is_marked(part, seen) for part in _parts(annotation))


def _part_is_marked(part: Any, seen: frozenset[type[BaseModel]]) -> bool:
    bare, metadata = _bare(part)
    return _has_mark(metadata) or _is_marked_within(bare, seen)


def _has_mark(metadata: list[Any] | list[object]) -> bool:
    return any(isinstance(each, Personal) for each in metadata)


def _parts(annotation: Any) -> Iterator[Any]:
    yield from (part for part in get_args(annotation) if not isinstance(part, str | int | bytes))
