"""The claim of a key by FastAPI's routes: after all dependencies of a route, before its function.

FastAPI has no hook at that point. So the claim is a dependency that is added as the last one, and the route's function
is wrapped, as integrations do (https://docs.sentry.io/platforms/python/integrations/fastapi/), not to run for a key
that was used before. Both are needed because of parameters: FastAPI solves every dependency, also after one with a
missing header, and only then refuses.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final

from fastapi import HTTPException, Request
from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.params import Header
from pydantic import BaseModel
from starlette.routing import Host, Match, Mount

from hybridkit._asgi_types import Scope
from hybridkit.adapters._http._identity import Declared
from hybridkit.adapters._http._keyed import KEYED, KeyedRequest
from hybridkit.context import bind

_keyed_request: ContextVar[KeyedRequest | None] = ContextVar("hybridkit_keyed_request", default=None)

REPEATED_STATUS: Final = 409
"""The status of a repetition for dependencies that see the route's end; the caller gets the stored response."""


def claims_after_dependencies(scope: Scope) -> bool:
    """Return whether the request goes to a route with dependencies, which claims the key after solving them.

    Args:
        scope: the scope of the request, before routing.
    """
    dependant = getattr(matched_route(scope["app"].router.routes, scope), "dependant", None)
    if not isinstance(dependant, Dependant) or dependant.call is None:
        return False
    if not any(isinstance(each.call, _ClaimDependency) for each in dependant.dependencies):
        dependant.dependencies.append(get_dependant(path="", call=_ClaimDependency(_declared(dependant))))
        dependant.call = _unless_repeated(dependant.call)
    return True


def is_routed(scope: Scope) -> bool:
    """Return whether a route answers the request, by its path and its method.

    Args:
        scope: the scope of the request, before routing.
    """
    return matched_route(scope["app"].router.routes, scope) is not None


def reads_body(scope: Scope) -> bool:
    """Return whether FastAPI reads the body for the route's function or its dependencies.

    Args:
        scope: the scope of the request, before routing.
    """
    dependant = getattr(matched_route(scope["app"].router.routes, scope), "dependant", None)
    return isinstance(dependant, Dependant) and any(
        each.body_params for each in (dependant, *_inner(dependant))
    )


def matched_route(routes: Iterable[Any], scope: Scope) -> Any:
    """Return the route for a request, also one of an included router or a mounted application.

    Args:
        routes: the routes of the application.
        scope: the scope of the request, before routing.
    """
    for route in routes:
        match, child = route.matches(scope)
        if match is not Match.FULL:
            continue
        # FastAPI includes routers by reference, with a route of its own for each inclusion.
        route = getattr(route, "starlette_route", None) or route  # noqa: PLW2901
        inner = {**scope, **child}
        if isinstance(route, Mount | Host):
            return matched_route(route.routes, inner) if route.routes else route
        included = getattr(route, "effective_candidates", None)
        return route if included is None else matched_route(included(), inner)
    return None


class _ClaimDependency:
    """The dependency that claims the key.

    Args:
        declared: what the route declares.
    """

    def __init__(self, declared: Declared) -> None:
        self._declared = declared

    def __repr__(self) -> str:
        return f"_ClaimDependency({self._declared!r})"

    async def __call__(self, request: Request) -> AsyncGenerator[None]:
        keyed: KeyedRequest | None = request.scope.get(KEYED)
        _keyed_request.set(keyed)
        if keyed is None:
            yield
            return
        await keyed.begin(self._declared)
        with bind(keyed.context()):
            yield


def _declared(dependant: Dependant) -> Declared:
    inner = list(_inner(dependant))
    models = [getattr(each.call, "model", None) for each in inner]
    schemes = [model for model in models if isinstance(model, APIKey)]
    in_query = {scheme.name for scheme in schemes if scheme.in_ is APIKeyIn.query}
    in_query.update(name for each in inner for name in _names(each.query_params))
    in_headers = {scheme.name for scheme in schemes if scheme.in_ is APIKeyIn.header}
    return Declared(
        secret_headers=_as_sent(in_headers),
        secret_parameters=frozenset(in_query),
        of_dependencies=_as_sent(name for each in inner for name in _names(each.header_params)),
        of_route=_as_sent(_names(dependant.header_params)),
    )


def _as_sent(names: Iterable[str]) -> frozenset[bytes]:
    return frozenset(name.lower().encode("latin-1") for name in names)


def _inner(dependant: Dependant) -> Iterator[Dependant]:
    for each in dependant.dependencies:
        yield each
        yield from _inner(each)


def _names(parameters: Iterable[ModelField]) -> Iterator[str]:
    """Yield the names of parameters in a request; a model declares several at once."""
    for parameter in parameters:
        model = parameter.field_info.annotation
        if not isinstance(model, type) or not issubclass(model, BaseModel):
            yield parameter.alias
            continue
        for name, field in model.model_fields.items():
            in_header = isinstance(parameter.field_info, Header)
            yield field.alias or (name.replace("_", "-") if in_header else name)


def _unless_repeated(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a route's function, of whatever kind, so that it is not called for a repetition."""

    @wraps(call)
    def enter(*args: Any, **kwargs: Any) -> Any:
        keyed = _keyed_request.get()
        if keyed is not None and not keyed.enter():
            raise HTTPException(REPEATED_STATUS)
        return call(*args, **kwargs)

    return enter
