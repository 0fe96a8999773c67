"""A transport that follows a script, with a clock that sleeping moves, and a pipeline over it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._pipeline import Pipeline
from hybridkit.clients._pipeline._policy import ClientPolicy
from hybridkit.clients._transports._base import Request, Response, StreamedResponse
from hybridkit.codec import encode_json
from hybridkit.contract import Problem
from hybridkit.errors import (
    HybridkitError,
    OutcomeUnknownError,
    UnavailableError,
)

READ = Intent(method="GET", path="/v1/users/7?select=id", safe=True)
WRITE = Intent(method="POST", path="/v1/users", body=b"{}", key="k-1")
BARE_WRITE = replace(WRITE, key=None)

OK = Response(status=200, headers={}, body=b"{}")
REFUSED = UnavailableError("nobody listens")
CUT = OutcomeUnknownError("cut in mid body")

type Step = Response | Exception | Callable[[], Response]


def problem(error: HybridkitError, **changes: object) -> Response:
    """Return the answer of a service that raised that error."""
    document = Problem.from_error(error, instance="/", request_id="r").model_copy(update=changes)
    return Response(
        status=document.status,
        headers={"content-type": "application/problem+json"},
        body=encode_json(document),
    )


class Wire:
    """Follows a script, its last step over and over; its clock moves when a call sleeps."""

    def __init__(self, *steps: Step) -> None:
        self.then(*steps)
        self.requests: list[Request] = []
        self.slept: list[float] = []
        self.now = 500.0
        self.open = 0

    def then(self, *steps: Step) -> None:
        self.steps = list(steps)

    async def send(self, request: Request) -> Response:
        self.requests.append(request)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Response) else step()

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[StreamedResponse]:
        """The scripted answer in chunks of one byte."""
        answer = await self.send(request)

        async def chunks() -> AsyncGenerator[bytes]:
            for byte in answer.body:
                yield bytes([byte])

        self.open += 1
        try:
            yield StreamedResponse(status=answer.status, headers=answer.headers, chunks=chunks())
        finally:
            self.open -= 1

    async def aclose(self) -> None:
        """Nothing is held."""

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def later(self, seconds: float, response: Response = OK) -> Callable[[], Response]:
        """An answer that takes its time, by this clock."""

        def answer() -> Response:
            self.now += seconds
            return response

        return answer

    def authorization(self) -> str:
        return f"Bearer {len(self.requests)}"

    def pipeline(
        self, policy: ClientPolicy | None = None, *, jitter: float = 0.5, target: str = "users:8001"
    ) -> Pipeline:
        return Pipeline(
            self,
            base_url="http://users:8001",
            target=target,
            service="api_service",
            policy=policy or ClientPolicy(),
            authorization=self.authorization,
            clock=lambda: self.now,
            sleep=self.sleep,
            jitter=lambda: jitter,
        )


async def failure(pipeline: Pipeline, intent: Intent) -> HybridkitError:
    """Return the error that ends the call."""
    with pytest.raises(HybridkitError) as caught:
        await pipeline.run(intent)
    return caught.value


class Silence(Wire):
    """Takes requests and never answers; time is real."""

    def __init__(self) -> None:
        super().__init__(OK)
        self.asked = asyncio.Event()

    async def send(self, request: Request) -> Response:
        self.requests.append(request)
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    def pipeline(
        self, policy: ClientPolicy | None = None, *, jitter: float = 0.0, target: str = "users:8001"
    ) -> Pipeline:
        return Pipeline(
            self,
            base_url="http://users:8001",
            target=target,
            service="api_service",
            policy=policy or ClientPolicy(read_timeout_seconds=0.15, write_timeout_seconds=0.15),
            jitter=lambda: jitter,
        )
