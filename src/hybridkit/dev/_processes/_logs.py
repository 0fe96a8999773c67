"""The JSON logs of several services: merged by request, and in a form for people."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hybridkit.codec import decode_object
from hybridkit.errors import PayloadError

_BOILERPLATE: Final = frozenset(
    {
        "@timestamp",
        "ecs.version",
        "error.stack_trace",
        "http.request.id",
        "log.level",
        "log.logger",
        "message",
        "service.environment",
        "service.name",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a service's JSON log.

    Attributes:
        service: the name of the service.
        timestamp: the time in ISO 8601 and UTC, as logged: the order of texts is the order of times.
        message: the text of the event.
        fields: every field of the line.
    """

    service: str
    timestamp: str
    message: str
    fields: Mapping[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.timestamp}  {self.service:<20} {self.message}"


def merge_logs(logs: Mapping[str, Path], *, request_id: str) -> list[LogLine]:
    """Return the lines of all services about one request, in the order of time.

    Args:
        logs: the log file of each service, by name, as `Supervisor.logs` has them. Lines that are not JSON are skipped.
        request_id: the request id that a line has in any of its fields.
    """
    lines = [line for service, path in logs.items() for line in _lines(service, path, request_id)]
    return sorted(lines, key=lambda line: line.timestamp)


def _lines(service: str, path: Path, request_id: str) -> Iterator[LogLine]:
    with path.open(errors="replace") as log:
        for text in log:
            fields = _parsed(text) if request_id in text else None
            if fields is not None and request_id in fields.values():
                yield LogLine(
                    service=service,
                    timestamp=str(fields.get("@timestamp", "")),
                    message=str(fields.get("message", "")),
                    fields=fields,
                )


def _parsed(text: str) -> dict[str, Any] | None:
    """Return the fields of a line with its labels among them, or None for a line that is not a JSON object."""
    try:
        fields = decode_object(text.encode())
    except PayloadError:
        return None
    labels = fields.pop("labels", None)
    return {**labels, **fields} if isinstance(labels, dict) else fields


def readable(text: str) -> str:
    """Format a JSON line for people; leave every other line as it is."""
    fields = _parsed(text)
    if fields is None:
        return text
    time_of_day = str(fields.get("@timestamp", ""))[11:23]
    words = f"{time_of_day}  {fields.get('log.level', ''):<8}  {fields.get('message', '')}"
    told = {name: value for name, value in fields.items() if name not in _BOILERPLATE}
    return f"{words}  {' '.join(f'{name}={value}' for name, value in told.items())}".rstrip()
