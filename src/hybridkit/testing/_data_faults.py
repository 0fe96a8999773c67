"""What the fake data service can be told to get wrong, for tests of what a caller makes of it."""

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
    """An answer, and how it gets to the caller.

    Attributes:
        status: of HTTP.
        headers: lower-case names.
        body: whole.
        drip_seconds: between one byte of the body and the next; 0 sends it at once.
        is_lost: the connection ends before any of it arrives.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    drip_seconds: float = 0.0
    is_lost: bool = False


def reply_of(problem: Problem) -> Reply:
    """That problem as an answer."""
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

    def concerns(self, request: str, *, reused: bool) -> bool:
        if self.only_reused and not reused:
            return False
        method, _, path = request.partition(" ")
        wanted = self.matching if " " in self.matching else f"* {self.matching or '*'}"
        return fnmatchcase(f"{method} {path}", wanted)


class Treatment:
    """The faults that one request meets."""

    def __init__(self, faults: list[_Fault]) -> None:
        self._faults = faults

    @property
    def drops_connection(self) -> bool:
        """The connection ends, and nothing is done."""
        return any(fault.only_reused for fault in self._faults)

    @property
    def delay_seconds(self) -> float:
        """How long it lies before anything is done."""
        return sum(fault.delay_seconds for fault in self._faults)

    @property
    def refusal(self) -> Reply | None:
        """What is answered instead of doing anything."""
        problem = next((fault.problem for fault in self._faults if fault.problem), None)
        return None if problem is None else reply_of(problem)

    def spoilt(self, reply: Reply) -> Reply:
        """The answer as it arrives."""
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
    """Faults of a `FakeDataService`: each holds for the next requests that it matches, several of them together.

    Every method takes

    * `matching`: which requests: `POST /v1/orders`, `/v1/orders/*`, `PATCH *`; `*` stands for anything. All, if it is
      left out.
    * `times`: how many of them; None for all, until `clear`.
    """

    def __init__(self) -> None:
        self._faults: list[_Fault] = []

    def __repr__(self) -> str:
        return f"DataFaults({len(self._faults)} waiting)"

    def delay(self, seconds: float, *, matching: str = "", times: int | None = None) -> None:
        """Let the request lie that long before anything is done."""
        self._add(_Fault(matching=matching, left=times, delay_seconds=seconds))

    def refuse(
        self, error: HybridkitError | None = None, *, matching: str = "", times: int | None = None
    ) -> None:
        """Do nothing, and answer with the problem of that error; with 503 for none."""
        error = error or UnavailableError("the fake was told so")
        problem = Problem.from_error(error, instance="/", request_id="fake")
        self._add(_Fault(matching=matching, left=times, problem=problem))

    def lose_reply(self, *, matching: str = "", times: int | None = None) -> None:
        """Do what is asked, and end the connection before the answer."""
        self._add(_Fault(matching=matching, left=times, loses_reply=True))

    def close_idle(self, *, matching: str = "", times: int | None = None) -> None:
        """End a connection just as the caller sends another request on it; nothing is done."""
        self._add(_Fault(matching=matching, left=times, only_reused=True))

    def drip(self, seconds: float = 0.05, *, matching: str = "", times: int | None = None) -> None:
        """Send the answer's body a byte at a time, with that pause before each."""
        self._add(_Fault(matching=matching, left=times, drip_seconds=seconds))

    def garble(self, kind: Garbage, *, matching: str = "", times: int | None = None) -> None:
        """Do what is asked, and answer with HTML, with half of the JSON, or with JSON of another schema."""
        self._add(_Fault(matching=matching, left=times, garbage=kind))

    def inflate(self, size_bytes: int, *, matching: str = "", times: int | None = None) -> None:
        """Do what is asked, and answer with that much."""
        self._add(_Fault(matching=matching, left=times, size_bytes=size_bytes))

    def clear(self) -> None:
        """End every fault."""
        self._faults.clear()

    def meet(self, request: str, *, reused: bool) -> Treatment:
        """What that request is to meet; for the fake itself.

        Args:
            request: `POST /v1/orders`.
            reused: it comes on a connection that has served another one.
        """
        found = [fault for fault in self._faults if fault.concerns(request, reused=reused)]
        for fault in found:
            if fault.left is not None:
                fault.left -= 1
        self._faults = [fault for fault in self._faults if fault.left != 0]
        return Treatment(found)

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
