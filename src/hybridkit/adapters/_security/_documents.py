"""The policies of routes in an OpenAPI document: schemes, so that "Authorize" works, and the responses 401 and 403."""

from collections.abc import Iterable
from typing import Any, Final

from hybridkit.adapters._security._routes import leaves, policy_of
from hybridkit.contract import PROBLEM_MEDIA_TYPE, Problem
from hybridkit.security import Security

_CHALLENGE: Final = {"WWW-Authenticate": {"description": "RFC 6750, section 3", "schema": {"type": "string"}}}
_ANSWERS: Final = {
    "401": "the request has no credentials, or they are not good (`UNAUTHENTICATED`)",
    "403": "the caller lacks a role or a scope (`ACCESS_DENIED`)",
}


def describe_security(document: dict[str, Any], routes: Iterable[Any], security: Security) -> None:
    """Add the security schemes, and what each route needs of them.

    Args:
        document: as FastAPI has made it; what a route declares itself stays.
        routes: the routes of the application.
        security: the security of the application.
    """
    schemes = security.schemes
    protected = False
    for _, route in leaves(routes):
        policies = policy_of(route).required
        if not policies:
            continue
        scopes = sorted({scope for policy in policies for scope in policy.scopes})
        operations: dict[str, dict[str, Any]] = document.get("paths", {}).get(
            getattr(route, "path_format", ""), {}
        )
        for method in getattr(route, "methods", None) or ():
            if (operation := operations.get(method.lower())) is None:
                continue
            protected = True
            operation.setdefault("security", [{name: scopes} for name in schemes])
            for status, description in _ANSWERS.items():
                answer = {"description": description, "headers": _CHALLENGE}
                answer["content"] = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
                operation.setdefault("responses", {}).setdefault(status, answer)
    if protected:
        components = document.setdefault("components", {})
        components.setdefault("securitySchemes", {}).update(schemes)
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components.setdefault("schemas", {}).update({**schema.pop("$defs", {}), "Problem": schema})
