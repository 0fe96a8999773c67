"""The proof of the logs: `python -m tests.proofs.ecs`, with Java 11 or later and Maven.

An OpenSearch node gets an index with `dynamic: strict` and the names and types of the Elastic Common Schema. Then the
demo runs its five services, and each line that they have logged must be accepted, beside lines with odd keys and
values. Lines that the schema does not know must be refused, or the index would prove nothing.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from examples.demo.stack import SERVICES
from hybridkit.dev import free_port
from hybridkit.observability._ecs import FIELDS, OBJECTS
from hybridkit.observability._logging import _json_renderer
from hybridkit.settings import ServiceSettings
from tests.helpers.ecs import index, lines_of

HERE: Final = Path(__file__).parent / "opensearch"
ODD_LINES: Final = 500
PER_REQUEST: Final = 100
READY_SECONDS: Final = 120.0


def main() -> int:
    """Run the proof and return the exit code: 0 also where Java or Maven is missing."""
    if missing := [program for program in ("java", "mvn") if shutil.which(program) is None]:
        say(f"skipped: this machine has no {' and no '.join(missing)}")
        return 0
    with tempfile.TemporaryDirectory() as scratch, node(Path(scratch)) as client:
        for name in ("odd", "logs"):
            created = client.put(f"/{name}", json=index())
            assert created.status_code == 200, created.text
        unknown = refused(client, "odd", [broken(name, value) for name, value in MISTAKES.items()])
        say(f"of {len(MISTAKES)} lines with a mistake, {len(unknown)} are refused")
        odd = refused(client, "odd", list(odd_lines()))
        say(f"of {ODD_LINES} lines with odd keys and values, {len(odd)} are refused")
        logs = Path(scratch) / "logs"
        subprocess.run([sys.executable, "-m", "examples.demo", "--logs", str(logs)], check=True)
        found: list[str] = []
        for service in SERVICES:
            lines = list(lines_of(logs / f"{service}.log"))
            reasons = refused(client, "logs", lines)
            say(f"of {len(lines)} lines of {service}, {len(reasons)} are refused")
            found += reasons
            assert lines
    for reason in [*odd[:10], *found[:10]]:
        say(reason)
    holds = len(unknown) == len(MISTAKES) and not odd and not found
    say("every line is accepted by the strict index" if holds else "the proof has failed")
    return 0 if holds else 1


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


MISTAKES: Final[dict[str, Any]] = {
    "plan": "free",
    "http.route": "/users",
    "@timestamp": "yesterday",
    "url.port": "http",
    "http": "GET",
    "client.ip": "nowhere",
    "message": {"text": "hello"},
}
SETTINGS: Final = ServiceSettings(service_name="proof", environment="test")


def rendered(event: dict[str, Any]) -> dict[str, Any]:
    """Return the line of an event as the pipeline writes it."""
    line: dict[str, Any] = json.loads(_json_renderer(SETTINGS)("proof", "info", {"exc_info": None, **event}))
    return line


def broken(name: str, value: object) -> dict[str, Any]:
    """Return a good line with one mistake."""
    return {**rendered({"event": "hello"}), name: value}


def odd_lines() -> Iterator[dict[str, Any]]:
    """Yield lines whose keys are often the schema's, and whose values are often not."""
    choose = random.Random(1)  # the same lines each time
    values: list[Any] = [
        "free",
        5,
        2.5,
        True,
        None,
        ["a"],
        [1, [2]],
        {"a": {"b": [1, {"c": 2}]}},
        {"request": "x"},
    ]
    values += [
        {"id": "x", "method": "GET"},
        "",
        "127.0.0.1",
        "2026-01-02T03:04:05Z",
        float("nan"),
        "x" * 40_000,
    ]
    keys = [
        *FIELDS,
        *OBJECTS,
        "plan",
        "a.b",
        "labels.x",
        "stack",
        "request_id",
        "",
        " ",
        ".",
        "..",
        "a..b",
        "http.",
    ]
    for number in range(ODD_LINES):
        event = {choose.choice(keys): choose.choice(values) for _ in range(4)}
        yield rendered({"event": f"line {number}", **event})


def refused(client: httpx.Client, name: str, lines: Sequence[dict[str, Any]]) -> list[str]:
    """Send lines to the index of a name and return the reasons of those that it refused."""
    reasons: list[str] = []
    for first in range(0, len(lines), PER_REQUEST):
        part = lines[first : first + PER_REQUEST]
        body = "".join(f'{{"create":{{}}}}\n{json.dumps(line)}\n' for line in part)
        answer = client.post(f"/{name}/_bulk", content=body, headers={"content-type": "application/x-ndjson"})
        assert answer.status_code == 200, answer.text
        items = [item["create"] for item in answer.json()["items"]]
        assert len(items) == len(part)
        reasons += [
            f"{item['error']['reason']} in {line}"
            for line, item in zip(part, items, strict=True)
            if "error" in item
        ]
    return reasons


@contextmanager
def node(scratch: Path) -> Generator[httpx.Client]:
    """Start a node inside the block and yield a client of it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridkit" / "opensearch"
    if not list(cache.glob("opensearch-[0-9]*.jar")):
        command = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
        subprocess.run([*command, f"-DoutputDirectory={cache}"], check=True)
    port = free_port()
    java = ["java", "-Xms256m", "-Xmx512m", "-cp", f"{cache}/*", str(HERE / "SingleNode.java")]
    with (
        (scratch / "node.log").open("wb") as log,
        subprocess.Popen(
            [*java, str(port), str(scratch / "home")], stdin=subprocess.PIPE, stdout=log, stderr=log
        ) as process,
    ):
        assert process.stdin is not None
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            try:
                wait_until_ready(client, process)
                yield client
            except RuntimeError:
                say((scratch / "node.log").read_text()[-2000:])
                raise
            finally:
                process.stdin.close()  # it ends then


def wait_until_ready(client: httpx.Client, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the node answers.

    Raises:
        RuntimeError: it has ended, or does not answer.
    """
    limit = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        try:
            if client.get("/").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError("OpenSearch did not start")


if __name__ == "__main__":
    sys.exit(main())
