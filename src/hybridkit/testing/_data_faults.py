"""The faults that a fake data service can be given, for tests of its callers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final, Literal

from hybridkit.codec import encode_json
from hybridkit.contract import PROBLEM_MEDIA_TYPE, Problem
from hybridkit.errors import HybridkitError, UnavailableError

type Garbage = Literal["html", "cut_json", "wrong_schema"]

_HTML: Final = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response of the fake data service, and how it reaches the caller.

    Attributes:
        status: the HTTP status.
        headers: the values by name, in lower case.
        body: the whole body.
        drip_seconds: the pause before each byte of the body; 0 sends it at once.
        is_lost: the connection ends before any of it arrives.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    drip_seconds: float = 0.0
    is_lost: bool = False


def reply_of(problem: Problem) -> Reply:
    """Return a problem as a response."""
    headers = {"content-type": PROBLEM_MEDIA_TYPE}
    if problem.retry_after_seconds is not None:
        headers["retry-after"] = f"{problem.retry_after_seconds:.0f}"
    return Reply(problem.status, headers, problem.model_dump_json(exclude_none=True).encode())


@dataclass(slots=True, kw_only=True)
class _Fault:
    matching: str
    left: int | None
    only_reused: bool = False
    delay_seconds: float = 0.0
    problem: Problem | None = None
    loses_reply: bool = False
    drip_seconds: float = 0.0
    garbage: Garbage | None = None
    size_bytes: int = 0

    def matches(self, request: str, *, reused: bool) -> bool:
        if self.only_reused and not reused:
            return False
        method, _, path = request.partition(" ")
        wanted = self.matching if " " in self.matching else f"* {self.matching or '*'}"
        return fnmatchcase(f"{method} {path}", wanted)


class RequestFaults:
    """The faults of one request."""

    def __init__(self, faults: list[_Fault]) -> None:
        self._faults = faults

    @property
    def drops_connection(self) -> bool:
        """Whether the connection ends before anything is done."""
        return any(fault.only_reused for fault in self._faults)

    @property
    def delay_seconds(self) -> float:
        """The time before anything is done."""
        return sum(fault.delay_seconds for fault in self._faults)

    @property
    def refusal(self) -> Reply | None:
        """The response that is sent instead of doing anything; None for no refusal."""
        problem = next((fault.problem for fault in self._faults if fault.problem), None)
        return None if problem is None else reply_of(problem)

    def apply_to(self, reply: Reply) -> Reply:
        """Return the response as it arrives at the caller."""
        for fault in self._faults:
            if fault.garbage is not None:
                reply = _garbled(reply, fault.garbage)
            if fault.size_bytes:
                body = b'{"padding":"' + b"x" * fault.size_bytes + b'"}'
                reply = Reply(200, {"content-type": "application/json"}, body)
            reply = replace(
                reply,
                drip_seconds=reply.drip_seconds or fault.drip_seconds,
                is_lost=reply.is_lost or fault.loses_reply,
            )
        return reply


class DataFaults:
    """The faults of a `FakeDataService`. Each applies to the next requests that it matches; several apply together.

    The methods take

    * `matching`: the requests, such as `POST /v1/orders`, `/v1/orders/*` or `PATCH *`, where `*` stands for any
      characters; by default all.
    * `times`: the number of requests; None, the default, for all until `clear`.
    """

    def __init__(self) -> None:
        self._faults: list[_Fault] = []

    def __repr__(self) -> str:
        return f"DataFaults({len(self._faults)} waiting)"

    def delay(self, seconds: float, *, matching: str = "", times: int | None = None) -> None:
        """Wait before anything is done."""
        self._add(_Fault(matching=matching, left=times, delay_seconds=seconds))

    def refuse(
        self, error: HybridkitError | None = None, *, matching: str = "", times: int | None = None
    ) -> None:
        """Do nothing, and answer with the problem of an error; by default with 503, `UnavailableError`."""
        error = error or UnavailableError("the fake was told so")
        problem = Problem.from_error(error, instance="/", request_id="fake")
        self._add(_Fault(matching=matching, left=times, problem=problem))

    def lose_reply(self, *, matching: str = "", times: int | None = None) -> None:
        """Do what the request asks for, and end the connection before the response."""
        self._add(_Fault(matching=matching, left=times, loses_reply=True))

    def close_idle(self, *, matching: str = "", times: int | None = None) -> None:
        """Do nothing, and end a connection that the caller reuses, as a server does that has just closed it."""
        self._add(_Fault(matching=matching, left=times, only_reused=True))

    def drip(self, seconds: float = 0.05, *, matching: str = "", times: int | None = None) -> None:
        """Send the response's body byte by byte, with a pause before each."""
        self._add(_Fault(matching=matching, left=times, drip_seconds=seconds))

    def garble(self, kind: Garbage, *, matching: str = "", times: int | None = None) -> None:
        """Do what the request asks for, and answer with HTML, half of the JSON, or JSON of another schema."""
        self._add(_Fault(matching=matching, left=times, garbage=kind))

    def inflate(self, size_bytes: int, *, matching: str = "", times: int | None = None) -> None:
        """Do what the request asks for, and answer with a body of that size."""
        self._add(_Fault(matching=matching, left=times, size_bytes=size_bytes))

    def clear(self) -> None:
        """End every fault."""
        self._faults.clear()

    def take(self, request: str, *, reused: bool) -> RequestFaults:
        """Return the faults of a request, and count it; the fake calls this.

        Args:
            request: method and path, such as `POST /v1/orders`.
            reused: whether its connection has carried another request before.
        """
        found = [fault for fault in self._faults if fault.matches(request, reused=reused)]
        for fault in found:
            if fault.left is not None:
                fault.left -= 1
        self._faults = [fault for fault in self._faults if fault.left != 0]
        return RequestFaults(found)

    def _add(self, fault: _Fault) -> None:
        self._faults.append(fault)


def _garbled(reply: Reply, kind: Garbage) -> Reply:
    match kind:
        case "html":
            return Reply(200, {"content-type": "text/html"}, _HTML)
        case "cut_json":
            return replace(reply, body=reply.body[: len(reply.body) // 2])
        case "wrong_schema":
            return replace(reply, body=encode_json({"unexpected": True}))
