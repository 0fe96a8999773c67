"""Run the project's gates, all of them, and tell at the end which failed.

    python scripts/gates.py            everything, tests last: what `make test` does
    python scripts/gates.py --static   what needs no tests: what `make lint` does
    python scripts/gates.py --tests    the tests only, without coverage: what `make test_lowest` does
    python scripts/gates.py --quick    ruff and format, then mypy and imports beside the unit tests of the packages
                                       that differ from `main`: what `make quick` does

Tools come from the environment of the Python that runs this. The static gates run beside the tests, one after the
other, as the tests leave a part of the processors idle. The last line counts tests and gates together.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
RESULTS = ROOT / "build" / "tests.xml"
SOURCES = ROOT / "src" / "hybridkit"
CHANGED = (["diff", "--name-only", "--merge-base", "main"], ["ls-files", "--others", "--exclude-standard"])
NOT_RUN = 75  # EX_TEMPFAIL: how a gate's script says that it could not run here

STATIC = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "pyright": ["pyright", "--pythonpath", sys.executable, "--warnings"],
    "imports": ["lint-imports"],
    "bandit": ["bandit", "-q", "-c", "pyproject.toml", "-r", "src", "examples"],
    "audit": ["python", "scripts/audit.py"],
    "docs": ["mkdocs", "build", "--strict", "--quiet"],
    "measure": ["python", "scripts/measure.py"],
}
FIRST = ("ruff", "format")  # of the quick gates: they take no time
BESIDE = ("mypy", "imports")
# The servers' data, where there is room. A database is 300 files, and for each new file ext4 looks at all that were
# deleted in the last seconds: a quarter of a second for each test's database on a disk, a tenth of that here.
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own in it
MEMORY_BYTES = 4 * 1024**3
# Three for each core: most tests wait for servers and processes. A worker that is done takes tests from the others.
PYTEST = ["-m", "pytest", "-n", "6", "--dist", "worksteal", f"--junitxml={RESULTS}"]
COVERAGE = {
    "coverage": ["coverage", "report", "--skip-covered"],
    "critical": ["python", "scripts/check_coverage.py"],
}


@dataclass(frozen=True)
class Outcome:
    """How one gate ended."""

    name: str
    status: str
    seconds: float


@dataclass(frozen=True)
class Counts:
    """Tests by their result."""

    passed: int
    failed: int
    skipped: int


def run(name: str, command: Sequence[str], *, live: bool = False) -> Outcome:
    """Run one gate; its output is shown as it comes, or in one piece when it did not pass."""
    started = time.monotonic()
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        env=_environment(),
        stdout=None if live else subprocess.PIPE,
        stderr=None if live else subprocess.STDOUT,
        text=True,
        check=False,
    )
    status = {0: "passed", NOT_RUN: "not run"}.get(done.returncode, "FAILED")
    if not live:
        _show(name, status, done.stdout)
    return Outcome(name, status, time.monotonic() - started)


def run_static(*, at_once: int) -> list[Outcome]:
    """Run the gates that need no running code, so many at a time."""
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(run, STATIC.keys(), STATIC.values()))


def run_tests(extra: Sequence[str], *, coverage: bool) -> Iterator[Outcome]:
    """Run the tests on the installed wheel and, with `coverage`, judge what they reached."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.unlink(missing_ok=True)
    if not (ROOT / "tests" / "__pycache__").exists():
        # A new clone: each worker would compile all that it imports, at the same time as the others.
        _quietly("python", "-m", "pytest", "--collect-only", "-q")
    if not coverage:
        yield run("tests", ["python", *PYTEST, *extra], live=True)
        return
    _quietly("coverage", "erase")
    yield run("tests", ["coverage", "run", *PYTEST, *extra], live=True)
    _quietly("coverage", "combine")
    for name, command in COVERAGE.items():
        yield run(name, command)


def run_quick() -> list[Outcome]:
    """Run the fastest gates and, if they pass, the others beside the unit tests of what has changed."""
    outcomes = [run(name, STATIC[name]) for name in FIRST]
    if any(outcome.status == "FAILED" for outcome in outcomes):
        return outcomes
    with ThreadPoolExecutor(max_workers=1) as beside:
        static = beside.submit(lambda: [run(name, STATIC[name]) for name in BESIDE])
        tests = list(run_tests(["-q", *changed_tests()], coverage=False))
        return [*outcomes, *static.result(), *tests]


def changed_tests() -> list[str]:
    """Return the unit tests that differ from `main` or import a package that does; all of them if there are none."""
    changed = {ROOT / name for command in CHANGED for name in _output("git", *command)}
    packages = {
        path.relative_to(SOURCES).parts[0].removesuffix(".py") for path in changed if SOURCES in path.parents
    }
    imports = re.compile(rf"\bhybridkit\.({'|'.join(map(re.escape, packages)) or '(?!)'})\b")
    units = sorted(ROOT.glob("tests/unit/test_*.py"))
    chosen = [path for path in units if path in changed or imports.search(path.read_text())]
    return [path.relative_to(ROOT).as_posix() for path in chosen or units]


def count_tests() -> Counts:
    """Read the counts that pytest has written; a run that wrote none counts as nothing passed."""
    if not RESULTS.exists():
        return Counts(0, 0, 0)
    suites = ET.parse(RESULTS).getroot().iter("testsuite")  # noqa: S314 - pytest wrote it a moment ago
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for key in counts:
            counts[key] += int(suite.get(key, 0))
    failed = counts["failures"] + counts["errors"]
    return Counts(counts["tests"] - failed - counts["skipped"], failed, counts["skipped"])


def report(outcomes: Sequence[Outcome], tests: Counts) -> bool:
    """Print one line per gate, then the counts; True when nothing failed."""
    print("\n── gates " + "─" * 40)
    for outcome in outcomes:
        print(f"{outcome.name:<10} {outcome.status:<8} {outcome.seconds:7.1f} s")
    gates = [outcome.status for outcome in outcomes if outcome.name != "tests" or not tests.failed]
    passed = tests.passed + gates.count("passed")
    failed = tests.failed + gates.count("FAILED")
    skipped = tests.skipped + gates.count("not run")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return failed == 0


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "NO_MKDOCS_2_WARNING": "1"}
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES:
        environment.setdefault("HYBRIDKIT_STATE_DIRECTORY", str(MEMORY / f"hybridkit_{os.getuid()}"))
    return environment


def _show(name: str, status: str, output: str) -> None:
    if status == "passed":
        print(f"{name}: passed", flush=True)
    else:
        print(f"── {name}: {status}\n{output.rstrip()}", flush=True)


def _output(*command: str) -> list[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def _quietly(*command: str) -> None:
    subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, check=False)


def main() -> None:
    """Run what the command line asks for; the exit code is 0 when nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--static", action="store_true")
    which.add_argument("--tests", action="store_true")
    which.add_argument("--quick", action="store_true")
    options, extra = parser.parse_known_args()
    if options.quick:
        outcomes = run_quick()
    elif options.static:
        outcomes = run_static(at_once=os.cpu_count() or 1)
    elif options.tests:
        outcomes = list(run_tests(extra, coverage=False))
    else:
        with ThreadPoolExecutor(max_workers=1) as beside:
            static = beside.submit(run_static, at_once=1)
            tests = list(run_tests(extra, coverage=True))
            outcomes = [*static.result(), *tests]
    sys.exit(not report(outcomes, count_tests() if not options.static else Counts(0, 0, 0)))


if __name__ == "__main__":
    main()
