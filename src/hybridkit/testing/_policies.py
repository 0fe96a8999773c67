"""Check in a test what an application checks when it starts."""

from hybridkit.errors import DeclarationError, MissingExtraError

try:
    from fastapi import FastAPI

    from hybridkit.adapters._security._routes import check_policies
except ModuleNotFoundError:
    raise MissingExtraError(__name__, extra="testing") from None


def assert_every_route_has_a_policy(app: FastAPI) -> None:
    """Fail with the names of all routes that have neither `require(...)` nor `public`.

    Args:
        app: an application of `create_app(security=Security(...))`; it need not run.

    Raises:
        AssertionError: there are such routes, or the application declares no security.
    """
    __tracebackhide__ = True
    if app.state.security is None:
        raise AssertionError("create_app() has no security=")
    try:
        check_policies(app, app.state.security, app.state.own_routes)
    except DeclarationError as refusal:
        raise AssertionError(str(refusal)) from None
