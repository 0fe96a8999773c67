"""Where a route of FastAPI's asks for its key: after all its dependencies, before its function.

FastAPI has no such place of its own. A dependency that is added as the last one asks, and the route's function is
wrapped, which integrations do (https://docs.sentry.io/platforms/python/integrations/fastapi/): it doesn't run where
the key was used before. That both are needed is due to parameters: FastAPI solves every dependency, also after one
that had a header missing, and only then refuses.
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
from hybridkit.adapters._identity import Declared
from hybridkit.adapters._keyed import KEYED, KeyedRequest
from hybridkit.context import bind

__all__ = ["claims_after_dependencies", "is_routed", "reads_body"]

_keyed_request: ContextVar[KeyedRequest | None] = ContextVar("hybridkit_keyed_request", default=None)

REPEATED_STATUS: Final = 409
"""What dependencies that wait for the route's end see of a repetition; the caller is given the kept answer."""


def claims_after_dependencies(scope: Scope) -> bool:
    """Whether the request goes to a route with dependencies, which then asks for the key when it has solved them.

    Args:
        scope: of the request, before it is routed.
    """
    dependant = getattr(_matched_route(scope["app"].router.routes, scope), "dependant", None)
    if not isinstance(dependant, Dependant) or dependant.call is None:
        return False
    if not any(isinstance(each.call, _ClaimDependency) for each in dependant.dependencies):
        dependant.dependencies.append(get_dependant(path="", call=_ClaimDependency(_declared(dependant))))
        dependant.call = _unless_repeated(dependant.call)
    return True


def is_routed(scope: Scope) -> bool:
    """Whether a route answers the request, by its path and its method.

    Args:
        scope: of the request, before it is routed.
    """
    return _matched_route(scope["app"].router.routes, scope) is not None


def reads_body(scope: Scope) -> bool:
    """Whether the request goes to a route whose function or dependencies take something of the body from FastAPI.

    Args:
        scope: of the request, before it is routed.
    """
    dependant = getattr(_matched_route(scope["app"].router.routes, scope), "dependant", None)
    return isinstance(dependant, Dependant) and any(
        each.body_params for each in (dependant, *_inner(dependant))
    )


def _matched_route(routes: Iterable[Any], scope: Scope) -> Any:
    """The route that will answer, also one of a router that is included or an application that is mounted."""
    for route in routes:
        match, child = route.matches(scope)
        if match is not Match.FULL:
            continue
        # Since routers are included by reference, FastAPI makes a route of its own for each place that it is in.
        route = getattr(route, "starlette_route", None) or route  # noqa: PLW2901
        inner = {**scope, **child}
        if isinstance(route, Mount | Host):
            return _matched_route(route.routes, inner)
        included = getattr(route, "effective_candidates", None)
        return route if included is None else _matched_route(included(), inner)
    return None


class _ClaimDependency:
    """The dependency that asks for the key.

    Args:
        declared: what the route reads of a request.
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
    """What they are called in a request; several at once may be declared as a model."""
    for parameter in parameters:
        model = parameter.field_info.annotation
        if not isinstance(model, type) or not issubclass(model, BaseModel):
            yield parameter.alias
            continue
        for name, field in model.model_fields.items():
            in_header = isinstance(parameter.field_info, Header)
            yield field.alias or (name.replace("_", "-") if in_header else name)


def _unless_repeated(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, be it a coroutine function, a generator, or something for a thread: it is only called later, or not."""

    @wraps(call)
    def enter(*args: Any, **kwargs: Any) -> Any:
        keyed = _keyed_request.get()
        if keyed is not None and not keyed.enter():
            raise HTTPException(REPEATED_STATUS)
        return call(*args, **kwargs)

    return enter
