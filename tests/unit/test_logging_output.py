"""Where lines leave the process: none is lost with it, and none fails it."""

import json
import os
import queue
import signal
import subprocess
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybridkit.observability import _output, metrics
from hybridkit.observability._output import Output, _Sink

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
    """Standard output is a pipe here, as in a container, and so would be buffered; it has room for all of them."""
    body = f"for number in range(200): log.info('line', number=number)\nos.kill(os.getpid(), signal.{name})"
    done = run(body, stdout=subprocess.PIPE)
    assert done.returncode == -signal.Signals[name]
    assert [json.loads(line)["labels"]["number"] for line in done.stdout.splitlines()] == list(range(200))


@pytest.mark.usefixtures("measured_processes")
def test_a_full_disk_is_counted_and_does_not_fail_the_work() -> None:
    """The process ends with exit code 0."""
    with Path("/dev/full").open("w") as full:
        done = run(f"log.info('line'); log.info('line'); {COUNT}", stdout=full)
    assert (done.returncode, done.stderr) == (0, "2.0\n")


@pytest.mark.usefixtures("measured_processes")
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


# ── a reader that does not read ──────────────────────────────────────────────────────────────────


@contextmanager
def blocked_output() -> Generator[int]:
    """Make standard output a full pipe inside the block, whose reading end this yields."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    with suppress(BlockingIOError):
        while os.write(writing, b"-" * 4096):
            pass
    os.set_blocking(writing, True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: writing))
        yield reading
    os.close(writing)
    os.close(reading)


def drain(reading: int, output: Output) -> bytes:
    """Read until the output has nothing left to write, and return what came after the filling."""
    found = b""
    while not output.flush(0):
        with suppress(BlockingIOError):
            found += os.read(reading, 2**20)
    with suppress(BlockingIOError):
        found += os.read(reading, 2**20)
    return found.lstrip(b"-")


def test_a_blocked_output_blocks_nobody_and_keeps_the_order() -> None:
    """Short lines and those longer than a pipe, and what comes when the reader reads again."""
    output = Output()
    lines = [b"%d " % number + b"x" * (100_000 if number % 10 == 0 else 10) + b"\n" for number in range(30)]
    with blocked_output() as reading:
        for line in lines:
            output.write(line)
        assert not output.flush(0.01)
        found = drain(reading, output)
        output.write(b"at once\n")
        after = os.read(reading, 100)
    assert found == b"".join(lines)
    assert after == b"at once\n"


def test_what_exceeds_the_backlog_is_dropped_counted_and_told() -> None:
    """The newest lines are dropped, whole; one call tells how many when the reader has caught up."""
    told: queue.Queue[int] = queue.Queue()
    output = Output(backlog_bytes=100, on_dropped=told.put)
    before = metrics.log_lines_dropped._value.get()
    with blocked_output() as reading:
        for number in range(30):
            output.write(b"line %05d\n" % number)
        found = drain(reading, output)
        assert told.get(timeout=60) == 21
    assert found == b"".join(b"line %05d\n" % number for number in range(9))
    assert metrics.log_lines_dropped._value.get() - before == 21


def test_a_reader_that_goes_away_meanwhile_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends, and whoever waits for it goes on."""
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: writing))
    output, before = Output(), metrics.log_lines_dropped._value.get()
    output.write(b"a" * 1_000_000)
    assert not output.flush(0)
    os.close(reading)
    assert output.flush(60)
    os.close(writing)
    assert metrics.log_lines_dropped._value.get() - before == 1


def test_an_output_that_does_not_block_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe of that kind is what node and some shells leave behind."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: writing))
    output, before = Output(), metrics.log_lines_dropped._value.get()
    lines = [b"a" * 100_000 + b"\n", b"b\n", b"c\n"]
    for line in lines:
        output.write(line)
    found = drain(reading, output)
    os.close(reading)
    os.close(writing)
    assert found == b"".join(lines)
    assert metrics.log_lines_dropped._value.get() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell how much a pipe holds")
def test_a_line_that_fits_into_the_pipe_is_written_whole_at_once() -> None:
    """Not in pieces, between which another worker on the same pipe would write; and not later."""
    reading, writing = os.pipe()
    sink = _Sink(writing)
    assert sink.has_room(60_000)
    os.write(writing, b"x" * 10_000)
    assert (sink.has_room(45_000), sink.has_room(50_000), sink.has_room(4_000)) == (True, False, True)
    os.close(reading)
    os.close(writing)


def test_a_line_logged_while_another_is_written_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler or a finalizer may log in the middle of a write."""
    written: list[str] = []
    output = Output()

    class Stream:
        def write(self, text: str) -> None:
            if not written:
                output.write(b"inner\n")
            written.append(text)

        def flush(self) -> None:
            assert written

    monkeypatch.setattr(sys, "stdout", Stream())
    output.write(b"outer\n")
    assert output.flush(60)
    assert written == ["outer\n", "inner\n"]


FULL_PIPE = """
import os, signal, sys, threading
from hybridkit.observability import configure_logging, get_logger
from hybridkit.settings import ServiceSettings

configure_logging(ServiceSettings(service_name="users_api", environment="test"))
log = get_logger(__name__)
for number in range(2000): log.info('line', number=number)
print("logged", file=sys.stderr, flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(3)", 3), ("raise RuntimeError('crash')", 1), ("", 0)],
)
def test_the_end_of_a_process_writes_what_still_waits(end: str, code: int) -> None:
    """Of an orderly end as of a crash: more than a pipe holds was logged before anybody read."""
    command = [sys.executable, "-c", FULL_PIPE.format(end=end)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"logged\n"  # it was not blocked
        out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert [json.loads(line)["labels"]["number"] for line in out.splitlines()] == list(range(2000))


def test_a_process_whose_output_nobody_reads_still_ends() -> None:
    """It waits for a moment only; what was not read is lost with it."""
    command = [sys.executable, "-c", FULL_PIPE.format(end="")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.wait(timeout=60) == 0


def test_a_forked_child_begins_with_an_empty_backlog() -> None:
    """What waits is the parent's to write, and its thread does not exist in the child."""
    output = Output()
    with blocked_output() as reading:
        output.write(b"parent\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
            child = os.fork()
        if child == 0:  # pragma: no cover # in the child
            output.reset_after_fork()
            os._exit(0 if output.flush(0) else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = drain(reading, output)
    assert (code, found) == (0, b"parent\n")


def test_a_child_forgets_what_waits_for_the_parent() -> None:
    """As the fork's hook has it do."""
    output = Output()
    with blocked_output() as reading:
        output.write(b"parent\n")
        assert repr(output) == "Output(7 bytes wait)"
        drain(reading, output)
        output.reset_after_fork()
        assert repr(output) == "Output(0 bytes wait)"


def test_a_system_that_does_not_tell_a_pipe_s_size_leaves_long_lines_to_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As macOS; short ones are written at once there, too."""
    monkeypatch.setattr(_output, "_F_GETPIPE_SZ", -1)
    reading, writing = os.pipe()
    sink = _Sink(writing)
    assert (sink.has_room(4_000), sink.has_room(10_000)) == (True, False)
    os.close(reading)
    os.close(writing)


def test_a_descriptor_that_is_closed_has_room_for_the_error() -> None:
    """The write fails then, and the line is counted."""
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    assert _Sink(writing).has_room(10_000)


def test_a_pipe_that_does_not_block_takes_nothing_when_it_is_full_and_the_rest_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread waits until it has room, and writes the line whole."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(65_536))
    assert _output._write(writing, b"x") == 0
    os.set_blocking(reading, False)
    with suppress(BlockingIOError):
        while True:
            os.read(reading, 65_536)

    taken, write = [0], _output._write
    monkeypatch.setattr(_output, "_write", lambda *given: taken.pop() if taken else write(*given))
    with open(writing, "wb", buffering=0) as stream:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stdout", stream)
        _output._write_whole(b"late\n")
        monkeypatch.undo()
    assert os.read(reading, 100) == b"late\n"
    os.close(reading)
