"""A client of other business services and of other people's APIs, over the pipeline of the data clients."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, TypedDict, Unpack, cast, overload

from pydantic import BaseModel, TypeAdapter

from hybridkit.clients._answers import adapter_of, answer_of, read_answer
from hybridkit.clients._base import BaseClient
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._policy import ClientPolicy
from hybridkit.clients._pipeline._texts import query_string, quoted
from hybridkit.clients._requests import JSON
from hybridkit.clients._transports._base import Response
from hybridkit.clients._transports._httpx import AnyTransport
from hybridkit.clients._write_identity import begin_write
from hybridkit.codec import encode_json
from hybridkit.errors import MisuseError, NotFoundError, ResponseError
from hybridkit.resources import Call

IDEMPOTENT: Final = frozenset({"PUT", "DELETE"})
"""The methods that have the same effect done twice: https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2."""

_NOT_A_PATH = re.compile(r"^[^/]|[?#]|(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)

type Param = str | int | float | bool


class ReadOptions(TypedDict, total=False):
    """The options of a read.

    Attributes:
        params: the query; a list gives its name several times.
        headers: headers of this call alone, by lower-case names.
    """

    params: Mapping[str, Param | Sequence[Param]]
    headers: Mapping[str, str]


class WriteOptions(ReadOptions, total=False):
    """The options of a write.

    Attributes:
        json: the body: a model, or any value that has a JSON form.
        step: the name of the call inside a claim, where the order of the calls can change between two runs.
        idempotency_key: sent as `Idempotency-Key`, for a service that honours it: then the call may be repeated.
        idempotent: whether the call may be repeated without a key; by default PUT and DELETE, not POST and PATCH.
    """

    json: object
    step: str
    idempotency_key: str
    idempotent: bool


class ServiceClient(BaseClient):
    """Calls one service: typed answers, and the deadline, retries, budget, breaker and bulkhead of every client.

    ```python
    async with ServiceClient("https://api.weather.example", service="api_service") as weather:
        now = await weather.get("/v1/now", params={"city": "Oslo"}, response_model=Weather)
    ```

    An answer without a 2xx status raises what its problem document says (RFC 9457), or by its status `NotFoundError`
    (404), `AccessDeniedError` (401, 403), `RateLimitedError` (429), `UnavailableError` (503; 502 and 504 of reads),
    `OutcomeUnknownError` (502 and 504 of writes), and `ResponseError` with the status for any other. No redirect is
    followed: it could lead a write, and the authorization, anywhere.

    A read is repeated within the deadline; a write only with a key, where `idempotent` says so, or when it was never
    sent.

    Args:
        base_url: the beginning of every URL, such as `https://api.weather.example/v1`.
        service: the name of the calling service, in snake_case.
        internal: whether it is one of our own services. These are told who calls, in which request and trace, for
            which user and for how long, and every write has an idempotency key, which they have to honour. Others are
            told nothing.
        transport: sends the requests, as for `PostgresDataClient`.
        policy: the limits; by default `ClientPolicy.interactive()`.
        authorization: gives the value of the `Authorization` header; called for each attempt, so that it may change.

    Raises:
        DeclarationError: the URL or the name can't be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        service: str,
        internal: bool = False,
        transport: AnyTransport | None = None,
        policy: ClientPolicy | None = None,
        authorization: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(
            base_url,
            service=service,
            transport=transport,
            policy=policy,
            authorization=authorization,
            internal=internal,
        )

    @overload
    async def get(self, path: str, **options: Unpack[ReadOptions]) -> Response: ...
    @overload
    async def get[T](self, path: str, *, response_model: type[T], **options: Unpack[ReadOptions]) -> T: ...
    async def get(
        self, path: str, *, response_model: type[Any] | None = None, **options: Unpack[ReadOptions]
    ) -> Any:
        """Send a `GET` request.

        Args:
            path: the path below the base URL, from `/` on; ids in it go through `urllib.parse.quote(id, safe="")`.
            response_model: the type as which the answer's JSON is read; by default the `Response` is returned.
            **options: the options of `ReadOptions`.

        Raises:
            ResponseError: the answer is no such model, or has an unexpected status.
            HybridkitError: the service refuses, as the class describes.
        """
        return await self._call("GET", path, response_model, cast("WriteOptions", options))

    @overload
    async def post(self, path: str, **options: Unpack[WriteOptions]) -> Response: ...
    @overload
    async def post[T](self, path: str, *, response_model: type[T], **options: Unpack[WriteOptions]) -> T: ...
    async def post(
        self, path: str, *, response_model: type[Any] | None = None, **options: Unpack[WriteOptions]
    ) -> Any:
        """Send a `POST` request, with the arguments of `get` and those of `WriteOptions`."""
        return await self._call("POST", path, response_model, options)

    @overload
    async def put(self, path: str, **options: Unpack[WriteOptions]) -> Response: ...
    @overload
    async def put[T](self, path: str, *, response_model: type[T], **options: Unpack[WriteOptions]) -> T: ...
    async def put(
        self, path: str, *, response_model: type[Any] | None = None, **options: Unpack[WriteOptions]
    ) -> Any:
        """Send a `PUT` request, with the arguments of `post`."""
        return await self._call("PUT", path, response_model, options)

    @overload
    async def patch(self, path: str, **options: Unpack[WriteOptions]) -> Response: ...
    @overload
    async def patch[T](self, path: str, *, response_model: type[T], **options: Unpack[WriteOptions]) -> T: ...
    async def patch(
        self, path: str, *, response_model: type[Any] | None = None, **options: Unpack[WriteOptions]
    ) -> Any:
        """Send a `PATCH` request, with the arguments of `post`."""
        return await self._call("PATCH", path, response_model, options)

    @overload
    async def delete(self, path: str, **options: Unpack[WriteOptions]) -> Response: ...
    @overload
    async def delete[T](
        self, path: str, *, response_model: type[T], **options: Unpack[WriteOptions]
    ) -> T: ...
    async def delete(
        self, path: str, *, response_model: type[Any] | None = None, **options: Unpack[WriteOptions]
    ) -> Any:
        """Send a `DELETE` request, with the arguments of `post`."""
        return await self._call("DELETE", path, response_model, options)

    async def call[RequestT: BaseModel, ResponseT: BaseModel](
        self, call: Call[RequestT, ResponseT], request: RequestT, *, step: str | None = None
    ) -> ResponseT:
        """Call an operation that the service has declared.

        Args:
            call: the operation.
            request: its argument.
            step: as in `WriteOptions`.
        """
        options: WriteOptions = {"json": request} if step is None else {"json": request, "step": step}
        response = await self._send("POST", call.path, options, safe=call.safe)
        return answer_of(call, response)

    async def _call(
        self,
        method: str,
        path: str,
        response_model: type[Any] | None,
        options: WriteOptions,
    ) -> Any:
        response = await self._send(method, path, options, safe=method == "GET")
        if response_model is None:
            return response
        adapter: TypeAdapter[Any] = adapter_of(
            cast("Hashable", response_model)
        )  # mypy takes type[Any] for unhashable
        return read_answer(adapter, response, what=f"a {response_model.__name__}")

    async def _send(self, method: str, path: str, options: WriteOptions, *, safe: bool) -> Response:
        url = _url(path, options.get("params", {}))
        key = options.get("idempotency_key")
        if not self._internal or safe or key is not None:
            return await self._send_with(key, method, url, options, safe=safe)
        content = (options.get("json"), options.get("params"))
        with begin_write(
            f"{method} {path}",
            method=method.lower(),
            step=options.get("step"),
            content=content,
            by_order=method == "POST",
        ) as write:
            return await self._send_with(write.key, method, url, options, safe=safe)

    async def _send_with(
        self, key: str | None, method: str, url: str, options: WriteOptions, *, safe: bool
    ) -> Response:
        body, content = (encode_json(options["json"]), JSON) if "json" in options else (b"", {})
        intent = Intent(
            method=method,
            path=url,
            headers={**content, **options.get("headers", {})},
            body=body,
            key=key,
            safe=safe,
            idempotent=options.get("idempotent", method in IDEMPOTENT),
        )
        try:
            return await self._open_pipeline().run(intent)
        except ResponseError as error:
            if error.response_status == 404:
                raise NotFoundError(str(error)) from error
            raise


def _url(path: str, params: Mapping[str, Param | Sequence[Param]]) -> str:
    """Return path and query, percent-encoded; refuse a path that an id which was not quoted has changed."""
    if _NOT_A_PATH.search(path):
        raise MisuseError(
            f"{path!r} can't be a path: it begins with / and has neither ? nor # nor a segment of dots; pass a query as"
            ' params, and put ids through urllib.parse.quote(id, safe="")'
        )
    encoded = quoted(path, safe="/%:@!$&'()*+,;=~")
    return f"{encoded}?{query_string(_lower(params))}" if params else encoded


def _lower(params: Mapping[str, Param | Sequence[Param]]) -> dict[str, Param | Sequence[Param]]:
    """Write booleans as JSON and most APIs do: `true`, not `True`."""
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in params.items()}
