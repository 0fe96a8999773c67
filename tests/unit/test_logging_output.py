"""Where lines leave the process: none is lost with it, and none fails it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybridkit.observability import metrics
from hybridkit.observability._output import _Output

PROGRAM = """
import os, signal, sys
from hybridkit.observability import configure_logging, get_logger, metrics
from hybridkit.settings import ServiceSettings

configure_logging(ServiceSettings(service_name="users_api", environment="test"))
log = get_logger(__name__)
{body}
"""
COUNT = "print(metrics.log_lines_dropped._value.get(), file=sys.stderr)"


def run(body: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    return subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, timeout=60, **options)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_no_line_is_lost_with_the_process(name: str) -> None:
    """Standard output is a pipe here, as in a container, and so would be buffered."""
    body = f"for number in range(500): log.info('line', number=number)\nos.kill(os.getpid(), signal.{name})"
    done = run(body, stdout=subprocess.PIPE)
    assert done.returncode == -signal.Signals[name]
    assert [json.loads(line)["number"] for line in done.stdout.splitlines()] == list(range(500))


def test_a_full_disk_is_counted_and_does_not_fail_the_work() -> None:
    """The process ends with exit code 0."""
    with Path("/dev/full").open("w") as full:
        done = run(f"log.info('line'); log.info('line'); {COUNT}", stdout=full)
    assert (done.returncode, done.stderr) == (0, "2.0\n")


def test_a_reader_that_went_away_is_counted_and_does_not_fail_the_work() -> None:
    """Nor the end of the process, where Python would flush its buffer and exit with 120."""
    reading, writing = os.pipe()
    os.close(reading)
    done = run(f"log.info('line'); {COUNT}", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "1.0\n")


@pytest.mark.parametrize("end", ["sys.stdout.close()", "sys.stdout = None"])
def test_a_closed_or_missing_output_is_counted(end: str) -> None:
    """A daemon may have neither."""
    done = run(f"{end}\nlog.info('line'); {COUNT}", stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr, done.stdout) == (0, "1.0\n", "")


def test_a_line_that_was_cut_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is a pipe that does not block, which node and some shells leave behind."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    output, before = _Output(), metrics.log_lines_dropped._value.get()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: writing))
        output.write(b"a" * 100_000 + b"\n")  # more than the pipe takes
        output.write(b"b\n")  # not even this
        dropped = metrics.log_lines_dropped._value.get() - before
        cut = os.read(reading, 100_000)
        output.write(b"c\n")
        output.write(b"d\n")
    rest = os.read(reading, 100_000)
    os.close(reading)
    os.close(writing)
    assert dropped == 2
    assert cut == b"a" * len(cut)
    assert rest == b"\nc\nd\n"
