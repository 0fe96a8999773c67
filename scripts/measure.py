"""Measure how the source reads: the size of folders and files, docstrings, comments, small helpers, tests, commits.

`python scripts/measure.py` prints a table, and fails where a figure is beyond its limit.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "src" / "hybridkit"
CONCURRENT: Final = (
    "messaging/_amqp",
    "messaging/_consuming",
    "messaging/_publishing",
    "dataservice/_outbox",
    "idempotency",
)
"""Folders whose comments have to explain order and races."""
COMMITS: Final = 200
NO_VERB: Final = re.compile(
    r"(a|all|always|an|and|any|as|at|before|both|by|each|either|every|everything|exactly|for|from|his|how|in|is|it|its|"
    r"never|nothing|no|not|of|on|once|one|only|our|over|several|some|such|that|the|their|these|they|this|those|to|true|"
    r"two|under|until|what|whatever|when|where|whether|which|who|whose|why|with|without|you|your)\b",
    re.IGNORECASE,
)
"""First words with which a summary names its subject, or begins a clause, instead of saying what to do."""

type Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        name: what is measured.
        value: the measured value.
        limit: the highest value that is allowed; None where the figure only informs.
        at: where the highest value was found.
    """

    name: str
    value: float
    limit: float | None = None
    at: str = ""

    @property
    def is_beyond(self) -> bool:
        """Whether the value is above its limit."""
        return self.limit is not None and self.value > self.limit


def main() -> int:
    """Print the figures, and return 1 where one is beyond its limit."""
    found = list(figures())
    for figure in found:
        limit = "" if figure.limit is None else f"at most {figure.limit:g}"
        mark = "  <-- beyond" if figure.is_beyond else ""
        print(f"{figure.name:<62} {figure.value:>8.5g}  {limit:<12} {figure.at}{mark}")
    return int(any(figure.is_beyond for figure in found))


def figures() -> Iterator[Figure]:
    """Yield every figure, in the order of the table."""
    modules = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in modules.items()}
    functions = [(path, node) for path, tree in trees.items() for node in functions_of(tree)]

    folders = Counter(path.parent for path in modules)
    folder, fullest = folders.most_common(1)[0]
    yield Figure("modules in the fullest folder", fullest, 20, relative(folder))
    yield Figure("public entries at the package's root", len(public_entries()), 23)

    lines = {path: text.count("\n") for path, text in modules.items()}
    longest = max(lines, key=lambda path: lines[path])
    yield Figure("lines of the longest file", lines[longest], 600, relative(longest))
    yield Figure("lines of the median file", median(lines.values()))

    bodies = {(path, node.name): body_lines(node) for path, node in functions}
    path, name = max(bodies, key=lambda key: bodies[key])
    yield Figure("lines of the longest function's body", bodies[path, name], None, f"{relative(path)}:{name}")
    yield Figure("lines of the median function's body", median(bodies.values()))

    said = [summary for _, node in functions if (summary := summary_of(node)) is not None]
    nouns = [summary for summary in said if not begins_with_a_verb(summary)]
    yield Figure("functions whose summary does not begin with a verb, %", share(len(nouns), len(said)), 10)

    yield Figure("comments per 100 lines", 100 * count_comments(modules.values()) / sum(lines.values()))
    for part in CONCURRENT:
        texts = [text for path, text in modules.items() if path.is_relative_to(PACKAGE / part)]
        total = sum(text.count("\n") for text in texts)
        yield Figure(f"  in {part}", 100 * count_comments(texts) / total)

    once = [node for tree in trees.values() for node in helpers_called_once(tree)]
    yield Figure(
        "one- or two-line helpers called once, per 1,000 lines", 1000 * len(once) / sum(lines.values()), 1.5
    )

    tests = [node for _, node in test_functions()]
    silent = [node for node in tests if ast.get_docstring(node) is None]
    yield Figure("tests without a sentence, %", share(len(silent), len(tests)), 0)
    if (bodiless := commits_without_a_body()) is not None:
        yield Figure(f"commits without a body, of the last {COMMITS}, %", bodiless)


def public_entries() -> list[str]:
    """Return the modules and packages that users may import from the root."""
    names = (
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    )
    return sorted(name for name in names if not name.startswith("_"))


def functions_of(tree: ast.AST) -> Iterator[Function]:
    """Yield every function and method, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(node: Function) -> int:
    """Count the lines of a function's body without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def summary_of(node: Function) -> str | None:
    """Return the first line of a function's docstring; None for properties, which are named by a noun."""
    if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
        return None
    docstring = ast.get_docstring(node)
    return docstring.partition("\n")[0] if docstring else None


def begins_with_a_verb(summary: str) -> bool:
    """Tell a summary such as "Return the page." from "The page." by its first word; ruff's D401 checks the form."""
    return summary[0].isalpha() and not NO_VERB.match(summary)


def count_comments(texts: Iterable[str]) -> int:
    """Count the comments for readers: neither those for linters nor rules that separate sections."""
    found = 0
    for text in texts:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                found += not re.match(r"#\s*(noqa|nosec|type:|pyright:|pragma|──|!)", token.string)
    return found


def helpers_called_once(tree: ast.Module) -> list[Function]:
    """Return the private functions and methods of one or two lines that are called once, and not passed on."""
    used = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    )
    called = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }
    return [
        node
        for node in functions_of(tree)
        if re.match(r"_[^_]", node.name)
        and not node.decorator_list
        and body_lines(node) <= 2
        and used[node.name] == 1
        and node.name in called
    ]


def test_functions() -> Iterator[tuple[Path, Function]]:
    """Yield the tests of the project."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        yield from (
            (path, node)
            for node in functions_of(ast.parse(path.read_text()))
            if node.name.startswith("test_")
        )


def commits_without_a_body() -> float | None:
    """Return the share of the last commits that have a subject only; None outside of a repository."""
    command = ["git", "log", f"-{COMMITS}", "--no-merges", "--format=%b%x00"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # nosec B603
    if asked.returncode:
        return None
    bodies = asked.stdout.split("\0")[:-1]
    return share(sum(not body.strip() for body in bodies), len(bodies))


def share(part: int, whole: int) -> float:
    """Return the percentage."""
    return round(100 * part / whole, 1) if whole else 0.0


def relative(path: Path) -> str:
    """Return the path from the repository's root."""
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    sys.exit(main())
