"""What the documentation shows is run, or at least looked up.

* ```` ```python ```` blocks of one page run in their order, in one program. A block that can't run has the comment
  `<!-- no-run: the reason -->` on the line above its fence.
* ```` ```output ```` blocks are what the program prints, all of them together.
* ```` ```console ```` and ```` ```bash ```` blocks are not run: the make targets, modules, scripts and extras that
  they name have to exist.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w-]*)")
NO_RUN = re.compile(r"<!-- no-run: \S.*-->")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the number of its first line (from 0), and whether it may be run."""

    language: str
    first_line: int
    lines: list[str]
    runs: bool

    @property
    def text(self) -> str:
        return "".join(line + "\n" for line in self.lines)


def blocks_of(markdown: str) -> list[Block]:
    found: list[Block] = []
    lines = markdown.splitlines()
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        number += 1
        if fence is None:
            continue
        start, indent = number, len(fence["indent"])
        while lines[number].strip() != fence["ticks"]:
            number += 1
        above = lines[start - 2] if start > 1 else ""
        body = [line[indent:] for line in lines[start:number]]
        found.append(Block(fence["language"], start, body, runs=not NO_RUN.search(above)))
        number += 1
    return found


def blocks_in(page: Path, *languages: str) -> list[Block]:
    return [block for block in blocks_of(page.read_text()) if block.language in languages]


def program_of(page: Path) -> str:
    """The page with everything but its Python blanked out, so that a traceback has the page's line numbers."""
    program = [""] * len(page.read_text().splitlines())
    for block in blocks_in(page, "python"):
        if block.runs:
            program[block.first_line : block.first_line + len(block.lines)] = block.lines
    return "\n".join(program)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# What pages import costs more than what they do with it. So other people's packages are imported once, and each page
# runs in a fork of that process: hybridkit's own modules, and names, are the page's own to import.
PAGES_RUNNER = """
import gc, importlib, os, runpy, sys

for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()
for line in sys.stdin:
    script = line.rstrip("\\n")
    if not (child := os.fork()):
        folder = os.path.dirname(script)
        os.chdir(folder)
        for number, name in enumerate((os.devnull, "stdout", "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        sys.argv[:] = [script]
        sys.path[0] = folder
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
IMPORTED = (
    "aiogram",
    "aio_pika",
    "alembic",
    "asyncpg",
    "fastapi",
    "httpx",
    "pymongo",
    "pytest",
    "redis.asyncio",
)


@pytest.fixture(scope="module")
def run_page() -> Iterator[Callable[[Path], int]]:
    """Runs a script, which leaves `stdout` and `stderr` beside it, and returns its exit code."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PAGES_RUNNER, *IMPORTED],
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(script: Path) -> int:
            print(script, file=process.stdin, flush=True)
            assert process.stdout
            return int(process.stdout.readline())

        yield run
        process.kill()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_in(page, "python")], ids=named)
def test_a_page_runs_and_prints_what_it_says(
    page: Path, run_page: Callable[[Path], int], tmp_path: Path
) -> None:
    """As a program of its own, with warnings as errors."""
    script = tmp_path / (page.stem + ".py")
    script.write_text(program_of(page))
    code = run_page(script)
    assert code == 0, f"{named(page)}\n{(tmp_path / 'stderr').read_text()}"
    shown = "".join(block.text for block in blocks_in(page, "output"))
    assert (tmp_path / "stdout").read_text() == shown, (
        f"{named(page)}: its `output` blocks are not what it prints"
    )


@pytest.mark.parametrize(
    ("program", "stderr"),
    [("1 / 0", "ZeroDivisionError"), ("import warnings; warnings.warn('old')", "UserWarning: old")],
)
def test_a_page_that_fails_is_found_out(
    program: str, stderr: str, run_page: Callable[[Path], int], tmp_path: Path
) -> None:
    """By an error or a warning, and the next page runs all the same."""
    script = tmp_path / "page.py"
    script.write_text(program)
    assert run_page(script) == 1
    assert stderr in (tmp_path / "stderr").read_text()


def commands() -> list[tuple[str, str]]:
    """Every command line shown, with the page that shows it."""
    found: list[tuple[str, str]] = []
    for page in PAGES:
        for block in blocks_in(page, "console", "bash"):
            prompt = "$ " if block.language == "console" else ""
            for line in block.lines:
                command, _, _comment = line.removeprefix(prompt).partition("  #")
                if line.startswith(prompt) and command.strip() and not command.startswith("#"):
                    found.append((named(page), command.strip()))
    return found


def problem_with(command: str) -> str | None:
    """What is wrong with a command line, as far as can be told without running it."""
    words = command.removeprefix("uv run ").split()
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        missing = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"the Makefile has no target {missing}" if missing else None
    if words[0] == "hybridkit":
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {})
        return None if "hybridkit" in scripts else "pyproject.toml declares no command `hybridkit`"
    if words[0] in {"python", "python3"} and words[1] == "-m":
        local = ROOT.joinpath(*words[2].split("."))
        exists = local.is_dir() or local.with_suffix(".py").exists() or find_spec(words[2]) is not None
        return None if exists else f"there is no module {words[2]}"
    if extras := re.search(r"hybridkit\[([\w,]+)\]", command):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        unknown = set(extras[1].split(",")) - set(project["optional-dependencies"])
        return f"there are no extras {unknown}" if unknown else None
    return None


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_that_is_shown_exists(page: str, command: str) -> None:
    """In pages, and in the README."""
    assert (problem := problem_with(command)) is None, f"{page}: `{command}`: {problem}"


@pytest.mark.parametrize(
    "command",
    [
        "make nonsense",
        "python -m hybridkit_nonsense",
        "uv run python -m hybridkit.nonsense",
        'pip install "hybridkit[nonsense]"',
    ],
)
def test_a_command_that_does_not_exist_is_found_out(command: str) -> None:
    """The check itself can fail."""
    assert problem_with(command) is not None


def test_a_block_without_a_reason_runs() -> None:
    """Only a comment that says why keeps a block from being run."""
    excused, plain = "<!-- no-run: it needs a broker -->", "<!-- no-run -->"
    page = f"{excused}\n```python\n1/0\n```\n{plain}\n```python\n1/0\n```\n"
    assert [block.runs for block in blocks_of(page)] == [False, True]
