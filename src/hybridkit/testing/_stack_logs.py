"""The errors in the logs of a stack."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hybridkit.codec import decode_object
from hybridkit.dev import LogLine
from hybridkit.errors import PayloadError

_ERRORS: Final = frozenset({"error", "critical"})


def error_lines(logs: Mapping[str, Path]) -> list[LogLine]:
    """Return the lines of level error and critical of all services, in the order of time.

    Args:
        logs: the log file of each service, by name. Lines that are not JSON are skipped.
    """
    texts = (
        (name, text) for name, path in logs.items() for text in path.read_text(errors="replace").splitlines()
    )
    found = [line for name, text in texts if (line := _error_in(name, text)) is not None]
    return sorted(found, key=lambda line: line.timestamp)


def _error_in(service: str, text: str) -> LogLine | None:
    try:
        fields = decode_object(text.encode())
    except PayloadError:
        return None
    if fields.get("log.level") not in _ERRORS:
        return None
    message = " ".join(
        str(fields.get(name, "")) for name in ("message", "error.type", "error.message")
    ).strip()
    return LogLine(
        service=service, timestamp=str(fields.get("@timestamp", "")), message=message, fields=fields
    )
