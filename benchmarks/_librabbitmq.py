"""The C client as a peer, where this machine has gcc and librabbitmq's headers (Debian: `librabbitmq-dev`)."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from benchmarks._payload import EVENT_TYPE, EXCHANGE, make_bodies
from benchmarks._side import IN_FLIGHT, Sample

_SOURCE: Final = Path(__file__).with_name("_peer_librabbitmq.c")


class CClient:
    """The compiled program."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def __repr__(self) -> str:
        return f"CClient({str(self._program)!r})"

    def publish(self, url: str, count: int) -> Sample:
        """Publish that many, 500 in flight; CPU and wall time per message."""
        parts = urlsplit(url)
        words = [
            parts.hostname or "localhost",
            str(parts.port or 5672),
            unquote(parts.username or "guest"),
            unquote(parts.password or "guest"),
            unquote(parts.path[1:]) or "/",
        ]
        command = [str(self._program), *words, EXCHANGE, EVENT_TYPE, str(count), str(IN_FLIGHT)]
        done = subprocess.run(  # noqa: S603 - built from our own source
            command, input=make_bodies(1)[0], capture_output=True, check=True, timeout=120
        )
        sample: Sample = json.loads(done.stdout)
        return sample


@contextmanager
def c_client() -> Generator[CClient | None]:
    """Compile it; None where that can't be done."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peer_librabbitmq"
        yield CClient(program) if compiler and _compile(compiler, program) else None


def _compile(compiler: str, program: Path) -> bool:
    command = [compiler, "-O2", "-o", str(program), str(_SOURCE), "-lrabbitmq"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - a compiler
