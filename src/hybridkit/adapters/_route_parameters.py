"""Parameters of FastAPI's routes that ask for what an application provides, and those that only look like it."""

from collections.abc import Container, Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant

from hybridkit._injection import bare_type
from hybridkit.adapters._provided import ProvidedByType, type_name, unprovided
from hybridkit.adapters._security._routes import leaves
from hybridkit.adapters.localization import Translator
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.context import RequestContext
from hybridkit.errors import DeclarationError
from hybridkit.settings import ServiceSettings

_OF_EACH_REQUEST: Final = frozenset({RequestContext, Translator})
_BY_ADDRESS: Final = frozenset({PostgresDataClient, MongoDataClient})
"""Provided where their address is set, which a test of other routes leaves out."""


def check_parameters(app: FastAPI, yielded: Mapping[Any, object], provided: Container[Any]) -> None:
    """Refuse routes that ask for what nothing provides, or would read from the request what the application provides.

    Args:
        app: the application, with all its routes.
        yielded: what the application's own lifespan has yielded, by type.
        provided: all types that have a provider.

    Raises:
        DeclarationError: there are such parameters; all of them are named.
    """
    routes = [
        (path, route.dependant)
        for path, route in leaves(app.router.routes)
        if isinstance(getattr(route, "dependant", None), Dependant)
    ]
    if wrong := {
        f"{name}: {type_name(type_)} ({path})"
        for path, dependant in routes
        for name, type_ in _read_from_request(dependant)
        if type_ in yielded or (isinstance(type_, type) and issubclass(type_, ServiceSettings))
    }:
        raise DeclarationError(
            f"FastAPI would read {', '.join(sorted(wrong))} from the request: write Provided[...] around the type, of"
            " hybridkit.adapters.dependencies, to get what the application provides"
        )
    if missing := {
        f"{type_name(asked.type)} ({path})"
        for path, dependant in routes
        for asked in _asked_for(dependant)
        if asked.type not in provided and asked not in app.dependency_overrides
    }:
        raise unprovided(", ".join(sorted(missing)))


def _asked_for(dependant: Dependant) -> Iterator[ProvidedByType]:
    for inner in dependant.dependencies:
        if isinstance(inner.call, ProvidedByType) and inner.call.type not in _OF_EACH_REQUEST | _BY_ADDRESS:
            yield inner.call
        yield from _asked_for(inner)


def _read_from_request(dependant: Dependant) -> Iterator[tuple[str, Any]]:
    """Yield the parameters of a route and its dependencies that a query or a body fills, with their types."""
    for parameter in (*dependant.query_params, *dependant.body_params):
        yield from ((parameter.name, type_) for type_ in _members(parameter.field_info.annotation))
    for inner in dependant.dependencies:
        yield from _read_from_request(inner)


def _members(annotation: Any) -> Iterable[Any]:
    bare = bare_type(annotation)
    return map(bare_type, get_args(bare)) if get_origin(bare) in {Union, UnionType} else (bare,)
