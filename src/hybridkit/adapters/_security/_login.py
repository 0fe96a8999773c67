"""The routes of a login: sign in, refresh, sign out, the list of sessions, the change of a password.

It is the login of an application's own users, with the form of OAuth2's password flow, so that "Authorize" works in the
OpenAPI page. It is no authorization server: other parties' programs come through an identity provider.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import parse_qs
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from hybridkit.adapters._security._login_limits import LoginLimits
from hybridkit.adapters._security._rate_limits import network_of
from hybridkit.adapters.dependencies import Postgres
from hybridkit.contract import IDEMPOTENCY_KEY_HEADER
from hybridkit.errors import (
    FieldProblem,
    InvalidHeaderError,
    InvalidRequestError,
    NotFoundError,
    SessionEndedError,
    UnauthenticatedError,
)
from hybridkit.observability import get_logger
from hybridkit.security import (
    AccessTokens,
    Account,
    Accounts,
    CurrentPrincipal,
    DataSessions,
    LoginSession,
    LoginSessions,
    Passwords,
    SessionRules,
    SessionStore,
    public,
    require,
)

MAX_FORM_BYTES: Final = 8192
MAX_NAME: Final = 255
_FORM: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["username", "password"],
                    "properties": {
                        "grant_type": {"type": "string", "enum": ["password"]},
                        "username": {"type": "string", "maxLength": MAX_NAME},
                        "password": {"type": "string", "format": "password"},
                    },
                }
            }
        },
    }
}

_log = get_logger("hybridkit.security")


class TokenPair(BaseModel):
    """The answer to a login and to a refresh, with the members of RFC 6749, section 5.1.

    Attributes:
        access_token: the credentials of requests: `Authorization: Bearer …`.
        token_type: always `Bearer`.
        expires_in: the seconds after which the access token is over.
        refresh_token: the credentials of the next refresh, good once.
    """

    access_token: str
    token_type: str = "Bearer"  # noqa: S105 - no password
    expires_in: int
    refresh_token: str


class RefreshRequest(BaseModel):
    """The body of a refresh.

    Attributes:
        refresh_token: the token of the last answer.
    """

    refresh_token: str = Field(max_length=512)


class PasswordChange(BaseModel):
    """The body of a change of the password.

    Attributes:
        current_password: the password until now.
        new_password: the password from now on.
    """

    current_password: str = Field(max_length=1024)
    new_password: str = Field(max_length=1024)


class SessionView(BaseModel):
    """A session, as its owner sees it.

    Attributes:
        id: to end it by.
        label: the device.
        created_at: the time of the login.
        last_used_at: the time of the last refresh.
        is_current: whether the request belongs to it.
    """

    id: UUID
    label: str
    created_at: datetime
    last_used_at: datetime
    is_current: bool


async def postgres_sessions(postgres: Postgres) -> SessionStore:
    """Return the sessions in the PostgreSQL data service."""
    return DataSessions(postgres)


def login_routes(
    accounts: Callable[..., Accounts],
    tokens: AccessTokens,
    *,
    passwords: Passwords | None = None,
    store: Callable[..., Any] = postgres_sessions,
    rules: SessionRules | None = None,
) -> APIRouter:
    """Return a router with the login of an application's own users.

    | route | |
    |---|---|
    | `POST /login` | the form `username`, `password` → access and refresh token |
    | `POST /login/refresh` | `{"refresh_token": …}` → both anew |
    | `POST /logout` | ends the session of the request |
    | `GET /login/sessions` | the user's sessions |
    | `DELETE /login/sessions/{id}`, `DELETE /login/sessions` | ends one of them, or all |
    | `PUT /login/password` | current and new password; ends all other sessions |
    | `GET /.well-known/jwks.json` | the public keys of the tokens |

    Attempts are limited per account and per address. A wrong name and a wrong password get the same answer after the
    same time. None of these routes takes an `Idempotency-Key`, as its answer would be stored.

    Args:
        accounts: a dependency of FastAPI's that returns the accounts; a class whose constructor has parameters such as
            `postgres: Postgres` is one.
        tokens: the application's tokens, as in `Security(tokens)`.
        passwords: hashes passwords; `Passwords()` by default.
        store: a dependency that returns the store of sessions; by default the PostgreSQL data service, which has
            `LOGIN_SESSIONS`.
        rules: how long sessions last.
    """
    router = APIRouter(tags=["login"], dependencies=[Depends(_without_key)])
    checker, limits = passwords or Passwords(), LoginLimits("login")
    use = _Use(tokens, rules, checker, limits)
    _add_login(router, use, accounts, store)
    _add_sessions(router, use, store)
    _add_password(router, use, accounts, store)

    @router.get("/.well-known/jwks.json", dependencies=[public], include_in_schema=False)
    async def public_keys(response: Response) -> dict[str, Any]:
        """Return the public keys, by which other services verify the tokens."""
        response.headers["cache-control"] = "public, max-age=300"
        return tokens.keys.jwks()

    return router


def _add_login(
    router: APIRouter, use: "_Use", accounts: Callable[..., Accounts], store: Callable[..., Any]
) -> None:
    @router.post("/login", dependencies=[public], openapi_extra=_FORM)
    async def sign_in(
        request: Request,
        response: Response,
        known: Annotated[Accounts, Depends(accounts)],
        kept: Annotated[SessionStore, Depends(store)],
    ) -> TokenPair:
        """Sign in with name and password."""
        name, password = await _read_form(request)
        await use.count(request, account=name)
        account = await known.by_name(name)
        check = await use.passwords.verify(password, account.password_hash if account else None)
        if account is None or not check.is_right or not account.is_active:
            _log.info("login refused", reason="wrong name or password", address=_address(request))
            raise UnauthenticatedError("the name or the password is wrong")
        if check.new_hash is not None:
            await known.save_password_hash(account.id, check.new_hash)
        label = request.headers.get("user-agent", "")
        session, token = await use.sessions(kept).begin(account.id, label=label)
        _log.info("login", user=account.id, session_id=str(session.id), address=_address(request))
        return use.pair(response, account, session, token)

    @router.post("/login/refresh", dependencies=[public])
    async def refresh(
        request: Request,
        response: Response,
        body: RefreshRequest,
        known: Annotated[Accounts, Depends(accounts)],
        kept: Annotated[SessionStore, Depends(store)],
    ) -> TokenPair:
        """Exchange a refresh token, which is good once, for new tokens."""
        del request
        sessions = use.sessions(kept)
        session, token = await sessions.refresh(body.refresh_token)
        account = await known.by_id(session.user_id)
        if account is None or not account.is_active:
            await use.end_all(kept, session.user_id)
            raise SessionEndedError("the session has ended: sign in again")
        return use.pair(response, account, session, token)

    @router.post("/logout", status_code=204, dependencies=[require()])
    async def sign_out(principal: CurrentPrincipal, kept: Annotated[SessionStore, Depends(store)]) -> None:
        """End the session of this request."""
        if principal.session_id is not None:
            await use.end(kept, principal.session_id)


def _add_sessions(router: APIRouter, use: "_Use", store: Callable[..., Any]) -> None:
    @router.get("/login/sessions", dependencies=[require()])
    async def list_sessions(
        response: Response, principal: CurrentPrincipal, kept: Annotated[SessionStore, Depends(store)]
    ) -> list[SessionView]:
        """Return the sessions of the user."""
        response.headers["cache-control"] = "no-store"
        return [
            SessionView(
                id=each.id,
                label=each.label,
                created_at=each.created_at,
                last_used_at=each.rotated_at,
                is_current=str(each.id) == principal.session_id,
            )
            for each in await use.sessions(kept).of_user(principal.id)
        ]

    @router.delete("/login/sessions/{session_id}", status_code=204, dependencies=[require()])
    async def end_session(
        session_id: UUID, principal: CurrentPrincipal, kept: Annotated[SessionStore, Depends(store)]
    ) -> None:
        """End one of the user's sessions."""
        if session_id not in {each.id for each in await use.sessions(kept).of_user(principal.id)}:
            raise NotFoundError("there is no such session")
        await use.end(kept, str(session_id))

    @router.delete("/login/sessions", status_code=204, dependencies=[require()])
    async def end_sessions(
        principal: CurrentPrincipal, kept: Annotated[SessionStore, Depends(store)]
    ) -> None:
        """End all sessions of the user."""
        await use.end_all(kept, principal.id)


def _add_password(
    router: APIRouter, use: "_Use", accounts: Callable[..., Accounts], store: Callable[..., Any]
) -> None:
    @router.put("/login/password", status_code=204, dependencies=[require()])
    async def change_password(
        request: Request,
        body: PasswordChange,
        principal: CurrentPrincipal,
        known: Annotated[Accounts, Depends(accounts)],
        kept: Annotated[SessionStore, Depends(store)],
    ) -> None:
        """Change the user's password, which takes the current one; all other sessions end."""
        await use.count(request, account=principal.id)
        account = await known.by_id(principal.id)
        check = await use.passwords.verify(body.current_password, account.password_hash if account else None)
        if account is None or not account.is_active or not check.is_right:
            raise InvalidRequestError(
                "the current password is wrong",
                errors=[FieldProblem("/current_password", "password", "it is not the current password")],
            )
        new = await use.passwords.hash(body.new_password, about=[principal.id], field="new_password")
        await known.save_password_hash(account.id, new)
        await use.end_all(kept, principal.id, keep=principal.session_id)
        _log.info("password changed", user=principal.id)


class _Use:
    """What several routes do."""

    def __init__(
        self, tokens: AccessTokens, rules: SessionRules | None, passwords: Passwords, limits: LoginLimits
    ) -> None:
        self.passwords = passwords
        self._limits = limits
        self._tokens = tokens
        self._rules = rules

    async def count(self, request: Request, *, account: str) -> None:
        redis = getattr(request.app.state, "redis", None)
        await self._limits.check(redis, account=account, address=_address(request))

    def sessions(self, store: SessionStore) -> LoginSessions:
        return LoginSessions(store, rules=self._rules)

    def pair(
        self, response: Response, account: Account, session: LoginSession, refresh_token: str
    ) -> TokenPair:
        response.headers["cache-control"] = "no-store"  # RFC 6749, section 5.1
        return TokenPair(
            access_token=self._tokens.issue(
                account.id, roles=account.roles, scopes=account.scopes, session_id=str(session.id)
            ),
            expires_in=int(self._tokens.lifetime_seconds),
            refresh_token=refresh_token,
        )

    async def end(self, store: SessionStore, session_id: str) -> None:
        await self.sessions(store).end(session_id)
        if self._tokens.revocations is not None:
            await self._tokens.revocations.add_session(session_id)

    async def end_all(self, store: SessionStore, user_id: str, *, keep: str | None = None) -> None:
        for ended in await self.sessions(store).end_all(user_id, keep=keep):
            if self._tokens.revocations is not None:
                await self._tokens.revocations.add_session(str(ended.id))


async def _without_key(request: Request) -> None:
    """Refuse an idempotency key: the answer, with credentials in it, would be stored.

    Raises:
        InvalidHeaderError: the request has one.
    """
    if IDEMPOTENCY_KEY_HEADER in request.headers:
        raise InvalidHeaderError(
            "answers with credentials are not stored, so this takes no Idempotency-Key",
            field=IDEMPOTENCY_KEY_HEADER,
        )


async def _read_form(request: Request) -> tuple[str, str]:
    """Return name and password of the form.

    Raises:
        InvalidRequestError: the body is no such form; the error quotes nothing of it.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields: dict[str, list[str]] = {}
    if kind == "application/x-www-form-urlencoded" and len(body) <= MAX_FORM_BYTES:
        try:
            fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=20)
        except ValueError:
            fields = {}
    found = [fields.get(name, []) for name in ("username", "password")]
    if fields.get("grant_type", ["password"]) != ["password"] or any(len(each) != 1 for each in found):
        raise InvalidRequestError(
            "a login is a form (application/x-www-form-urlencoded) of username and password"
        )
    [name], [password] = found
    if not 0 < len(name) <= MAX_NAME or "\x00" in name or "\x00" in password:
        raise InvalidRequestError(
            "the name does not fit", errors=[FieldProblem("/username", "string", "it is empty or too long")]
        )
    return name, password


def _address(request: Request) -> str:
    return network_of(request.client.host) if request.client else "unknown"
