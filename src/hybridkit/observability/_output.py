"""Write log lines out of the process: at once, whole, and without an error."""

import os
import sys
from typing import Any, Final

from hybridkit.observability._metrics import metrics


class _Output:
    """Standard output without a buffer: a buffered line dies with the process, and its error comes back at the end."""

    def __init__(self) -> None:
        self._torn = False

    def write(self, line: bytes) -> None:
        """Write the line now. A line that cannot be written is counted and dropped."""
        if self._torn:
            line = b"\n" + line
        stream = sys.stdout
        rest = memoryview(line)
        try:
            descriptor = _descriptor(stream)
            if descriptor is None:
                stream.write(line.decode())
                stream.flush()
                return
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except Exception:  # noqa: BLE001 # closed, full, or not a stream at all: logging never fails the work
            metrics.log_lines_dropped.inc()
        if len(rest) < len(line):
            self._torn = bool(rest)


def _descriptor(stream: Any) -> int | None:
    """Return the file descriptor; None for a stream in memory, such as tests put in place."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None


write_line: Final = _Output().write
