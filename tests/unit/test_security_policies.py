"""Who may call a route: policies, deny by default, and what a refused caller is told."""

from collections.abc import Mapping, MutableMapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from structlog.testing import capture_logs

from hybridkit._asgi_types import Scope
from hybridkit._header_fields import Fields
from hybridkit.adapters.fastapi import create_app
from hybridkit.context import current
from hybridkit.errors import DeclarationError, UnauthenticatedError
from hybridkit.security import (
    OPEN,
    CurrentPrincipal,
    OptionalPrincipal,
    Principal,
    Security,
    public,
    require,
)
from hybridkit.testing import assert_every_route_has_a_policy
from tests.helpers.apis import Api, Settings, key, problem, scope_of, serving

ANN = Principal(id="ann", roles=frozenset({"admin"}), scopes=frozenset({"orders:read"}))
BOB = Principal(id="bob")


class Names:
    """Takes the token for the caller's name, of those it knows."""

    schemes: Mapping[str, Mapping[str, Any]] = {"names": {"type": "http", "scheme": "bearer"}}

    async def authenticate(self, scope: Scope) -> Principal | None:
        token = Fields(scope["headers"]).single("authorization")
        if token is None:
            return None
        for each in (ANN, BOB):
            if token == f"Bearer {each.id}":
                return each
        raise UnauthenticatedError("no such name", challenge='Bearer error="invalid_token"')


def as_(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


@pytest.fixture
def app() -> FastAPI:
    """Make an application with a route for each kind of policy."""
    app = create_app(Settings, title="Test", security=Security(Names()))
    app.add_api_route("/open", lambda: "open", dependencies=[public])
    app.add_api_route("/any", lambda: "any", dependencies=[require()])
    app.add_api_route("/send", lambda: "sent", methods=["POST"], dependencies=[require()])
    app.add_api_route("/admin", lambda: "admin", dependencies=[require(role=["admin", "owner"])])
    app.add_api_route("/read", lambda: "read", dependencies=[require(scope="orders:read")])
    app.add_api_route(
        "/write", lambda: "write", dependencies=[require(scope=["orders:write", "orders:read"])]
    )
    return app


@pytest.mark.parametrize(
    ("path", "name", "status"),
    [
        ("/open", None, 200),
        ("/open", "ann", 200),
        ("/open", "eve", 200),
        ("/any", None, 401),
        ("/any", "eve", 401),
        ("/any", "bob", 200),
        ("/admin", "ann", 200),
        ("/admin", "bob", 403),
        ("/admin", None, 401),
        ("/read", "ann", 200),
        ("/read", "bob", 403),
        ("/write", "ann", 403),
    ],
)
async def test_a_policy_lets_in_whom_it_names(app: FastAPI, path: str, name: str | None, status: int) -> None:
    """A route is reached by callers who meet its policy, and others get 401 or 403."""
    async with serving(app) as client:
        answer = await client.get(path, headers=as_(name) if name else {})
    assert answer.status_code == status


async def test_a_refusal_names_the_credentials_that_are_missing(app: FastAPI) -> None:
    """401 and 403 are problems with the challenge of RFC 6750."""
    async with serving(app) as client:
        without, bad = await client.get("/any"), await client.get("/any", headers=as_("eve"))
        weak, wrong = (
            await client.get("/write", headers=as_("ann")),
            await client.get("/admin", headers=as_("bob")),
        )
    assert problem(without) == (401, "UNAUTHENTICATED")
    assert without.headers["www-authenticate"] == "Bearer"
    assert bad.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert problem(weak) == (403, "ACCESS_DENIED")
    assert (
        weak.headers["www-authenticate"]
        == 'Bearer error="insufficient_scope", scope="orders:read orders:write"'
    )
    assert "www-authenticate" not in wrong.headers
    assert without.headers["content-type"] == "application/problem+json"


async def test_a_head_request_needs_what_its_get_needs(app: FastAPI) -> None:
    """HEAD, which is answered as GET, is no way around the policy."""
    async with serving(app) as client:
        assert (await client.head("/any")).status_code == 401
        assert (await client.head("/any", headers=as_("bob"))).status_code == 200


async def test_unknown_paths_and_methods_are_answered_as_ever(app: FastAPI) -> None:
    """A path without a route is 404 and a wrong method 405, as there is nothing to protect."""
    async with serving(app) as client:
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.delete("/any")).status_code == 405


async def test_the_body_of_a_refused_request_is_not_read(app: FastAPI) -> None:
    """A caller without credentials can't make the service read a body."""
    reads: list[int] = []
    answers: list[Any] = []

    async def receive() -> Any:
        reads.append(1)
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        answers.append(message)

    async with serving(app):
        await app(scope_of("/send"), receive, send)
    assert answers[0]["status"] == 401
    assert reads == []


async def test_the_principal_is_the_user_of_the_context(app: FastAPI) -> None:
    """A handler gets the principal by type, and everything that reads the context sees the user."""

    @app.get("/me", dependencies=[require()])
    async def me(principal: CurrentPrincipal) -> list[str | None]:
        return [principal.id, current().user_id]

    async with serving(app) as client:
        assert (await client.get("/me", headers=as_("bob"))).json() == ["bob", "bob"]


def _with_user(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {**line, "user": current().user_id}


async def test_the_log_names_the_user(app: FastAPI) -> None:
    """The lines of a request carry its verified user, also of one that is refused."""
    async with serving(app) as client:
        with capture_logs([_with_user]) as lines:
            await client.get("/any", headers=as_("bob"))
            await client.get("/admin", headers=as_("bob"))
            await client.get("/any", headers=as_("eve"))
    assert [(line["event"], line["user"]) for line in lines] == [
        ("GET /any 200", "bob"),
        ("access denied", "bob"),
        ("GET /admin 403", "bob"),
        ("GET /any 401", None),
    ]


async def test_an_open_route_knows_a_caller_who_says_who_it_is(app: FastAPI) -> None:
    """A public route gets the principal when there are good credentials, and None otherwise."""

    @app.get("/who", dependencies=[public])
    async def who(principal: OptionalPrincipal) -> str | None:
        return principal.id if principal else None

    @app.get("/must", dependencies=[public])
    async def must(principal: CurrentPrincipal) -> str:
        return principal.id

    async with serving(app) as client:
        assert (await client.get("/who", headers=as_("ann"))).json() == "ann"
        assert (await client.get("/who", headers=as_("eve"))).json() is None
        assert (await client.get("/must")).status_code == 401


async def test_policies_of_routers_and_mounted_applications_hold(app: FastAPI) -> None:
    """Included routers, routers in routers and mounted applications have the policies that they were given."""
    inner = APIRouter(prefix="/inner")
    inner.add_api_route("/leaf", lambda: "leaf")
    outer = APIRouter(prefix="/outer", dependencies=[require(role="admin")])
    outer.include_router(inner, dependencies=[require(scope="orders:read")])
    app.include_router(outer)
    mounted = FastAPI(openapi_url=None, dependencies=[require()])
    mounted.add_api_route("/leaf", lambda: "leaf")
    app.mount("/mounted", mounted)
    async with serving(app) as client:
        for path in ("/outer/inner/leaf", "/mounted/leaf"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers=as_("ann"))).status_code == 200
        assert (await client.get("/outer/inner/leaf", headers=as_("bob"))).status_code == 403


async def test_a_route_that_is_added_later_needs_a_policy_too(app: FastAPI) -> None:
    """A route of a running application, which no start has checked, is closed without a policy."""
    router = APIRouter(prefix="/late")
    async with serving(app) as client:
        app.add_api_route("/late-open", lambda: "late", dependencies=[public])
        app.include_router(router)
        router.add_api_route("/closed", lambda: "late")
        assert (await client.get("/late-open")).status_code == 200
        assert (await client.get("/late/closed", headers=as_("ann"))).status_code == 500
        router.add_api_route("/admin", lambda: "late", dependencies=[require(role="admin")])
        assert (await client.get("/late/admin", headers=as_("bob"))).status_code == 403
        assert (await client.get("/admin", headers=as_("bob"))).status_code == 403


async def test_a_websocket_has_a_policy_as_well(app: FastAPI) -> None:
    """A connection that its policy refuses is closed before it is accepted."""

    @app.websocket("/feed", dependencies=[require(role="admin")])
    async def feed(socket: WebSocket, principal: CurrentPrincipal) -> None:
        await socket.accept()
        await socket.send_text(principal.id)
        await socket.close()

    async def connect(headers: list[tuple[bytes, bytes]]) -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app({**scope_of("/feed"), "type": "websocket", "headers": headers}, receive, send)
        return sent

    async with serving(app):
        accepted = await connect([(b"authorization", b"Bearer ann")])
        assert [each["type"] for each in accepted] == [
            "websocket.accept",
            "websocket.send",
            "websocket.close",
        ]
        assert accepted[1]["text"] == "ann"
        for headers in ([], [(b"authorization", b"Bearer bob")]):
            assert await connect(headers) == [{"type": "websocket.close", "code": 1008, "reason": ""}]


def bare_routes(app: FastAPI, folder: Path) -> None:
    router = APIRouter(prefix="/router")
    router.add_api_route("/bare/{id}", lambda: None, methods=["PUT"])
    app.include_router(router)
    app.add_api_route("/bare", lambda: "bare")
    app.mount("/files", StaticFiles(directory=folder))
    app.router.routes.append(Mount("/old", routes=[Route("/page", lambda _: PlainTextResponse("old"))]))


async def test_a_route_without_a_policy_keeps_the_application_from_starting(
    app: FastAPI, tmp_path: Path
) -> None:
    """The refusal names all such routes, also of routers and mounted applications, and the test helper does too."""
    assert_every_route_has_a_policy(app)
    bare_routes(app, tmp_path)
    with pytest.raises(DeclarationError, match="4 of the routes have no policy") as refusal:
        async with serving(app):
            pass
    for name in ("PUT /router/bare/{id}", "GET /bare", "/files", "GET /old/page"):
        assert name in str(refusal.value)
    with pytest.raises(AssertionError, match="PUT /router/bare"):
        assert_every_route_has_a_policy(app)


async def test_what_can_have_no_policy_is_opened_by_its_path(tmp_path: Path) -> None:
    """A mounted folder and Starlette's routes are open when their paths are named, which opens no other route."""
    (tmp_path / "page.txt").write_text("page")
    app = create_app(Settings, title="Test", security=Security(Names(), public_paths=["/files", "/old"]))
    app.mount("/files", StaticFiles(directory=tmp_path))
    app.router.routes.append(Mount("/old", routes=[Route("/page", lambda _: PlainTextResponse("old"))]))
    app.add_api_route("/files-of-others", lambda: "closed", dependencies=[require()])
    async with serving(app) as client:
        assert (await client.get("/files/page.txt")).text == "page"
        assert (await client.get("/old/page")).text == "old"
        assert (await client.get("/files-of-others")).status_code == 401
        assert (await client.get("/health")).status_code == 200


def test_a_principal_is_never_read_from_a_body(app: FastAPI) -> None:
    """A handler that asks for the bare class is refused, as FastAPI would read it from the request."""

    async def wrong(principal: Principal) -> str:
        return principal.id

    with pytest.raises(DeclarationError, match="CurrentPrincipal"):
        app.add_api_route("/wrong", wrong, methods=["POST"], dependencies=[require()])


@pytest.mark.parametrize("security", [OPEN, None])
async def test_a_policy_that_nothing_checks_is_refused(security: Any) -> None:
    """An application without security does not start with a route that needs a principal."""
    app = create_app(Settings, title="Test", security=security)
    app.add_api_route("/closed", lambda: "closed", dependencies=[require()])
    with pytest.raises(DeclarationError, match="GET /closed"):
        async with serving(app):
            pass


async def test_a_policy_that_nothing_checks_refuses_the_request() -> None:
    """A router with policies is closed also in an application that is not of create_app."""
    plain = FastAPI()
    plain.add_api_route("/closed", lambda: "closed", dependencies=[require()])
    plain.add_api_route("/open", lambda: "open", dependencies=[public])
    async with serving(plain) as client:
        assert (await client.get("/closed")).status_code == 500
        assert (await client.get("/open")).status_code == 200


async def test_contradicting_policies_are_refused(app: FastAPI) -> None:
    """A route can't be public in a router that needs a role: nobody could say what holds."""
    router = APIRouter(dependencies=[require(role="admin")])
    router.add_api_route("/torn", lambda: "torn", dependencies=[public])
    app.include_router(router)
    with pytest.raises(DeclarationError, match="GET /torn: public and require"):
        async with serving(app):
            pass


@pytest.mark.parametrize(
    ("environment", "security", "internal", "starts"),
    [
        ("production", None, False, False),
        ("production", OPEN, False, True),
        ("production", None, True, True),
        ("development", None, False, True),
        ("test", None, False, True),
    ],
)
async def test_production_wants_to_know_who_may_call(
    environment: Any, security: Any, internal: bool, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API without security starts in development and tests, and in production only when it says that it is open."""
    monkeypatch.setattr("hybridkit.adapters._running.UNREADY_SECONDS", 0.0)
    app = create_app(Settings, title="Test", security=security, internal=internal)
    app.state.settings = Settings(environment=environment)
    refused = nullcontext() if starts else pytest.raises(DeclarationError, match="security=OPEN")
    with refused:
        async with serving(app) as client:
            assert (await client.get("/health")).status_code == 200


async def test_an_answer_is_kept_for_its_principal(app: FastAPI, serve_keyed: Api) -> None:
    """A key is unknown to another user, and to nobody, who is refused before any answer is looked for."""
    made: list[str] = []

    @app.post("/orders", dependencies=[require()])
    async def create(principal: CurrentPrincipal) -> str:
        made.append(principal.id)
        return principal.id

    async with serve_keyed(app) as client:
        first = await client.post("/orders", headers=key("k") | as_("ann"))
        again = await client.post("/orders", headers=key("k") | as_("ann"))
        other = await client.post("/orders", headers=key("k") | as_("bob"))
        nobody = await client.post("/orders", headers=key("k"))
        forged = await client.post("/orders", headers=key("k") | as_("eve"))
    assert [first.json(), again.json(), other.json()] == ["ann", "ann", "bob"]
    assert again.headers["idempotency-replayed"] == "true"
    assert (nobody.status_code, forged.status_code) == (401, 401)
    assert made == ["ann", "bob"]


async def test_the_document_says_what_a_route_needs(app: FastAPI) -> None:
    """The OpenAPI document has schemes, scopes and responses of protected routes, and none of open ones."""
    document = app.openapi()
    assert document["components"]["securitySchemes"] == {"names": {"type": "http", "scheme": "bearer"}}
    assert document["paths"]["/write"]["get"]["security"] == [{"names": ["orders:read", "orders:write"]}]
    assert {"401", "403"} <= document["paths"]["/admin"]["get"]["responses"].keys()
    assert "security" not in document["paths"]["/open"]["get"]


def test_what_a_declaration_refuses() -> None:
    """Empty names, scopes that no header carries, bad paths, and security that verifies nobody."""
    for wrong in ({"role": ""}, {"scope": ["a b"]}, {"scope": 'a"'}, {"scope": "ä"}):
        with pytest.raises(DeclarationError):
            require(**wrong)
    with pytest.raises(DeclarationError, match="OPEN"):
        Security()
    for paths in (["files"], "/files"):
        with pytest.raises(DeclarationError):
            Security(Names(), public_paths=paths)


def test_a_principal_is_who_its_issuer_says() -> None:
    """Principals are equal by issuer and subject, and nothing of them can be changed."""
    one = Principal(id="7", issuer="https://a", roles={"x"}, claims={"a": 1})  # type: ignore[arg-type]
    assert one == Principal(id="7", issuer="https://a", subject="7")
    assert one != Principal(id="7", issuer="https://b")
    assert one.roles == frozenset({"x"})
    with pytest.raises(TypeError):
        one.claims["a"] = 2  # type: ignore[index]
    with pytest.raises(AttributeError):
        one.id = "8"  # type: ignore[misc]
