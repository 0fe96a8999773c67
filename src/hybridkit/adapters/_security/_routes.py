"""The routes of an application and their policies."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from starlette.routing import Host, Mount

from hybridkit.adapters._security._rate_limits import Guard, take_guards
from hybridkit.errors import DeclarationError
from hybridkit.security import OpenAccess, Security
from hybridkit.security._policies import Policy

_POLICY: Final = "_hybridkit_policy"
"""The attribute of a route that remembers its policy."""


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    """What a route needs of its callers.

    Attributes:
        required: the policies that need a verified caller.
        is_public: whether a policy says that the route is open.
        guards: the rate limits of verified callers.
    """

    required: tuple[Policy, ...] = ()
    is_public: bool = False
    guards: tuple[Guard, ...] = ()

    @property
    def is_missing(self) -> bool:
        """Whether the route has no policy at all."""
        return not self.required and not self.is_public


_NONE: Final = RoutePolicy()


def policy_of(route: Any) -> RoutePolicy:
    """Return what a route needs by its own policies and those of its routers and dependencies.

    They are taken out of the route's dependencies: the check before the route stands for them, and each would cost
    every request some microseconds.

    Args:
        route: one of FastAPI's routes, or of Starlette's, which has no policies.
    """
    found: RoutePolicy | None = route.__dict__.get(_POLICY)
    if found is None:
        found = _NONE
        if isinstance(getattr(route, "dependant", None), Dependant):
            policies = list(_take_policies(route.dependant))
            required = tuple(policy for policy in policies if not policy.is_public)
            has_guards = bool(required) and hasattr(route, "responses")
            found = RoutePolicy(
                required, len(required) < len(policies), tuple(take_guards(route)) if has_guards else ()
            )
        setattr(route, _POLICY, found)
    return found


def _take_policies(dependant: Dependant) -> Iterator[Policy]:
    for each in list(dependant.dependencies):
        if isinstance(each.call, Policy):
            dependant.dependencies.remove(each)
            yield each.call
        else:
            yield from _take_policies(each)


def leaves(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each route that answers requests itself, with the path at which it does.

    Args:
        routes: the routes of an application or a router, with included routers and mounted applications.
        prefix: the path at which the application is mounted.
    """
    for route in routes:
        included = getattr(route, "effective_candidates", None)
        inner = getattr(route, "starlette_route", None) or route
        if included is not None:
            yield from leaves([*included(), *route.effective_low_priority_routes()], prefix)
        elif isinstance(inner, Mount | Host) and inner.routes:
            yield from leaves(inner.routes, prefix + getattr(inner, "path", ""))
        else:
            yield prefix + (getattr(inner, "path", "") or getattr(inner, "frontend_prefix", "")), inner


def check_policies(app: FastAPI, security: Security | OpenAccess | None, own: Iterable[Any]) -> None:
    """Refuse an application with a route that has no policy, or one that nothing checks.

    Args:
        app: the application, with all its routes.
        security: what the application declares.
        own: the routes that the SDK has added, such as `/health`.

    Raises:
        DeclarationError: there are such routes; all of them are named.
    """
    known = list(own)
    frontends = getattr(app.router, "_low_priority_routes", [])  # FastAPI's `app.frontend()`
    found = [
        (path, route, policy_of(route))
        for path, route in leaves([*app.router.routes, *frontends])
        if not any(route is each for each in known)
    ]
    if not isinstance(security, Security):
        if unchecked := [_named(path, route) for path, route, policy in found if policy.required]:
            raise DeclarationError(
                f"nothing checks the require() of {', '.join(unchecked)}: give create_app(security=Security(...))"
            )
        return
    if torn := [_named(path, route) for path, route, policy in found if policy.required and policy.is_public]:
        raise DeclarationError(f"{', '.join(torn)}: public and require() contradict each other")
    if bare := [
        _named(path, route)
        for path, route, policy in found
        if policy.is_missing and not security.is_public_path(path)
    ]:
        raise DeclarationError(
            f"{len(bare)} of the routes {'has' if len(bare) == 1 else 'have'} no policy: {', '.join(bare)}; add"
            " dependencies=[require(...)] or dependencies=[public] to each or to its router, or name what can't have"
            " one in Security(public_paths=)"
        )


def _named(path: str, route: Any) -> str:
    methods = sorted(set(getattr(route, "methods", None) or ()) - {"HEAD"})
    return " ".join([*methods, path or "/"])
