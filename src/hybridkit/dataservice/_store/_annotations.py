"""Annotations of fields, taken apart."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, TypeAliasType, Union, get_args, get_origin


def alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union one by one, without aliases, constraints and None."""
    if isinstance(annotation, TypeAliasType):
        yield from alternatives(annotation.__value__)
    elif get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from alternatives(part)
    elif hasattr(annotation, "__supertype__"):  # of NewType
        yield from alternatives(annotation.__supertype__)
    elif annotation is not type(None) and annotation is not None:
        yield annotation
