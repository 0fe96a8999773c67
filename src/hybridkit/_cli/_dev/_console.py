"""One readable stream of the logs of several processes, as they grow."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from hybridkit._cli._common import printable
from hybridkit.dev._processes._logs import readable

KEPT_BYTES: Final = 64 * 1024 * 1024
"""A log that has been read is emptied when it has grown beyond this."""
COLORS: Final = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
"""Codes for the foreground, https://www.ecma-international.org/publications-and-standards/standards/ecma-48/."""
RED: Final = 31
GREY: Final = 90


class Tails:
    """The logs of several processes, read as they grow.

    Args:
        logs: the file of each process, by name; it need not exist yet.
        is_emptied: whether a log that has been read may be emptied, for processes that run for days.
    """

    def __init__(self, logs: Mapping[str, Path], *, is_emptied: bool) -> None:
        self._logs = logs
        self._is_emptied = is_emptied
        self._read = dict.fromkeys(logs, 0)

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """Yield the complete lines that were added since the last call, each with the name of its process."""
        for name, path in self._logs.items():
            if not path.exists():
                continue
            with path.open("rb") as log:
                log.seek(self._read[name])
                complete = log.read().rpartition(b"\n")[0]
            if complete:
                self._read[name] += len(complete) + 1
                for line in complete.decode(errors="replace").splitlines():
                    yield name, line
            if self._is_emptied and KEPT_BYTES < self._read[name] == path.stat().st_size:
                os.truncate(path, 0)  # processes append, so they go on at the start
                self._read[name] = 0


class Console:
    """Prints lines with the name of their process before them, in color on a terminal.

    `NO_COLOR` turns colors off, https://no-color.org.

    Args:
        names: the processes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._width = max(map(len, names), default=0)
        self._colors = {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}
        self._is_colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def log(self, name: str, line: str) -> None:
        """Print a line of a process's log."""
        words = printable(readable(line))
        self._print(name, self._in(RED, words) if '"log.level":"error"' in line else words)

    def tell(self, name: str, words: str) -> None:
        """Print a line about a process."""
        self._print(name, self._in(GREY, f"── {printable(words)}"))

    def _print(self, name: str, words: str) -> None:
        label = self._in(self._colors.get(name, GREY), f"{name:<{self._width}}")
        print(f"{label}  {words}", flush=True)  # noqa: T201 - the command speaks by printing

    def _in(self, color: int, text: str) -> str:
        return f"\033[{color}m{text}\033[0m" if self._is_colored else text
