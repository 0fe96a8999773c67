"""Names of a model's members: as they are sent, and as they are stored and shown.

A field of a record is called by its name. Inside a document a member has its alias, as whoever reads it with the same
model expects. What a model computes is not stored: it would be out of date, and a reader computes it again.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import orjson
from pydantic import AliasChoices, AliasPath, BaseModel, TypeAdapter

from hybridkit.codec import InexactFloat, encode_json


@lru_cache(maxsize=1024)
def fields_by_member(model: type[BaseModel]) -> Mapping[str, str]:
    """Return the model's fields by every name under which the model takes one."""
    by_name = bool(model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name"))
    return {
        own: name
        for name, info in model.model_fields.items()
        for own in _taken(name, info.validation_alias, by_name=by_name)
    }


def values_of(model: BaseModel, *, only: Collection[str] | None = None) -> dict[str, Any]:
    """Return the model's values by field, in the form in which they are stored.

    Args:
        model: validated.
        only: the fields to return; None for all.
    """
    found = model.model_dump(by_alias=True, round_trip=True, include=None if only is None else set(only))
    return {name: _as_stored(found[alias]) for name, alias in _shown(type(model)) if alias in found}


@lru_cache(maxsize=1024)
def _shown(model: type[BaseModel]) -> Sequence[tuple[str, str]]:
    """Return the names of the model's fields, each with the one under which it is dumped."""
    return [(name, _stored_name(model, name)) for name in model.model_fields]


def dumped(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Return a field's value in the form in which it is stored."""
    return _as_stored(adapter.dump_python(value, by_alias=True, round_trip=True))


def patch_as_stored(sent: Any, kept: Any) -> Any:
    """Return a merge patch with the names of stored members, and with no member that wasn't sent.

    Args:
        sent: the patch.
        kept: the patch as the field's type reads it.
    """
    if not isinstance(sent, Mapping):
        return sent
    members = cast("Mapping[str, Any]", sent)
    match kept:
        case BaseModel():
            model = type(kept)
            names = fields_by_member(model)
            declared = {own: value for own, value in members.items() if own in names}
            others = {own: value for own, value in members.items() if own not in names}
            return others | {
                _stored_name(model, names[own]): patch_as_stored(value, getattr(kept, names[own]))
                for own, value in declared.items()
            }
        case Mapping():
            found = cast("Mapping[str, Any]", kept)
            return {own: patch_as_stored(value, found.get(own)) for own, value in members.items()}
        case _:
            return members


def with_others(stored: Any, given: Any, kept: Any) -> Any:
    """Return a document completed with the members that its model doesn't have: others have stored them.

    Args:
        stored: the document as its model writes it, to be completed.
        given: the document as it is.
        kept: the document as the model reads it.
    """
    match kept:
        case BaseModel() if isinstance(given, Mapping):
            model = type(kept)
            names = fields_by_member(model)
            for own, value in cast("Mapping[str, Any]", given).items():
                if own in names:
                    alias = _stored_name(model, names[own])
                    stored[alias] = with_others(stored[alias], value, getattr(kept, names[own]))
                elif own not in model.model_computed_fields:
                    stored[own] = value
        case Mapping():
            found = cast("Mapping[str, Any]", kept)
            for own in stored.keys() & found.keys() & given.keys():
                stored[own] = with_others(stored[own], given[own], found[own])
        case list():
            triples = zip(stored, given, cast("list[Any]", kept), strict=False)
            return [with_others(*triple) for triple in triples]
        case _:
            pass
    return stored


def _stored_name(model: type[BaseModel], name: str) -> str:
    return model.model_fields[name].serialization_alias or name


def _taken(name: str, alias: str | AliasPath | AliasChoices | None, *, by_name: bool) -> Iterator[str]:
    if alias is None or by_name:
        yield name
    for choice in alias.choices if isinstance(alias, AliasChoices) else [alias]:
        head = choice.path[0] if isinstance(choice, AliasPath) else choice
        if isinstance(head, str):
            yield head


def _as_stored(value: Any) -> Any:
    """Make the keys of dictionaries texts, as in JSON, and inexact numbers floats."""
    match value:
        case dict():
            members = cast("dict[object, Any]", value)
            return {_key(key): _as_stored(member) for key, member in members.items()}
        case list():
            return [_as_stored(member) for member in cast("list[Any]", value)]
        case InexactFloat():
            return float(value)
        case _:
            return value


def _key(key: object) -> str:
    if type(key) is str:
        return key
    text = encode_json(key)
    return str(orjson.loads(text)) if text.startswith(b'"') else text.decode()
