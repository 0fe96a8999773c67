"""Message classes whose JSON needs no check, found by pydantic's description of their fields.

Before a message is published, its JSON is read back, because a consumer would refuse what its class can't read. Of the
plain fields that many messages have, it is certain beforehand.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast
from uuid import UUID

from pydantic import BaseModel

MAX_TYPE_LISTS: Final = 64

_MODEL_KEYS: Final = frozenset(
    {"cls", "config", "custom_init", "metadata", "ref", "root_model", "schema", "type"}
)
_FIELDS_KEYS: Final = frozenset({"computed_fields", "fields", "model_name", "type"})
_WRAPPER_KEYS: Final = frozenset({"default", "metadata", "schema", "type"})
_PLAIN_TYPES: Final[Mapping[str, type]] = {"bool": bool, "int": int, "str": str, "uuid": UUID}


class PlainFields:
    """The fields of a message class of which each is a text, a UUID, a boolean or an integer, or null where it may be.

    They have no constraints, aliases, validators and serialisers: what their serialiser writes, their validator reads,
    as long as each value has its field's type. `model_construct` takes any value.

    Attributes:
        have_numbers: whether there is an integer among them, whose digits are still to be counted.

    Args:
        types: by the field's name, the types that its values may have.
    """

    def __init__(self, types: Mapping[str, frozenset[type]]) -> None:
        self.have_numbers = any(int in allowed for allowed in types.values())
        self._names = tuple(types)
        self._types = tuple(types.values())
        self._fitting: set[tuple[type, ...]] = set()

    def __repr__(self) -> str:
        return f"PlainFields({', '.join(self._names)})"

    def fit(self, message: BaseModel) -> bool:
        """Return whether a message has all fields, with values of their types."""
        values = message.__dict__
        if tuple(values) != self._names:
            return False
        found = tuple(map(type, values.values()))
        if found in self._fitting:
            return True
        is_fitting = all(kind in allowed for kind, allowed in zip(found, self._types, strict=True))
        if is_fitting and len(self._fitting) < MAX_TYPE_LISTS:
            self._fitting.add(found)
        return is_fitting


@cache
def plain_fields(message: type[BaseModel]) -> PlainFields | None:
    """Return the fields of a message class if all of them are plain; None where there is anything unknown here."""
    model = cast("dict[str, Any]", message.__pydantic_core_schema__)
    fields = model.get("schema", {})
    if (
        model["type"] != "model"
        or fields.get("type") != "model-fields"
        or model.keys() - _MODEL_KEYS
        or fields.keys() - _FIELDS_KEYS
        or model.get("config", {}).keys() - {"title", "frozen"}
        or model.get("custom_init")
        or model.get("root_model")
        or fields.get("computed_fields")
    ):
        return None
    types = {name: _plain_types(field) for name, field in fields["fields"].items()}
    return PlainFields(types) if all(types.values()) else None


def _plain_types(field: Mapping[str, Any]) -> frozenset[type]:
    """Return the types of a field whose JSON is read as it was written; none for any other, or one with options."""
    if field.keys() - {"metadata", "schema", "type"}:  # an alias, for example
        return frozenset()
    types: set[type] = set()
    schema = field["schema"]
    while schema["type"] in {"default", "nullable"} and not schema.keys() - _WRAPPER_KEYS:
        if schema["type"] == "nullable":
            types.add(type(None))
        schema = schema["schema"]
    plain = _PLAIN_TYPES.get(schema["type"])
    if plain is None or schema.keys() - {"metadata", "type"}:  # a constraint, for example
        return frozenset()
    return frozenset({plain, *types})
