"""The files of a project on which each of its processes depends, and which of them have changed.

A process depends on every module of the project that it imports, directly or not, and on what else is in the folder of
its module: templates, texts, and sources outside of packages, such as migrations. Imports are read from the sources;
nothing is run.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

IGNORED_FOLDERS: Final = frozenset({"__pycache__", "build", "dist", "node_modules", "site-packages", "venv"})
MAX_FILES: Final = 10_000
"""Of one folder; whoever has more keeps data there, which no process depends on."""

type Stamps = Mapping[Path, tuple[int, int]]
"""The time of the last change in nanoseconds, and the size, of each file."""


class Sources:
    """The files of a process in a project.

    Args:
        module: the module that is run, as in `python -m MODULE`.
        roots: the folders in which modules of the project are found.
        also: further files, which need not exist.
    """

    def __init__(self, module: str, roots: Sequence[Path], *, also: Sequence[Path] = ()) -> None:
        self._module = module
        self._roots = roots
        self._also = also
        self._stamps: Stamps = {}
        self.look()

    def __repr__(self) -> str:
        return f"Sources({self._module!r}, {len(self._stamps)} files)"

    def look(self) -> list[Path]:
        """Return the files that were changed, added or removed since the last call, in alphabetic order."""
        before = self._stamps
        if any(_stamp(path) != stamp for path, stamp in before.items()) or not before:
            files = {*self._imported(), *self._beside(), *self._also}
        else:
            files = {*before, *self._beside(), *self._also}
        self._stamps = {path: stamp for path in files if (stamp := _stamp(path)) is not None}
        changed = before.items() ^ self._stamps.items()
        return sorted({path for path, _ in changed})

    def _beside(self) -> Iterator[Path]:
        """Yield the files that are not imported, in the folder of the module, unless that is the project's."""
        found = _find(self._module, self._roots)
        if found is not None and found.parent not in self._roots:
            yield from islice(_files_beside(found.parent), MAX_FILES)

    def _imported(self) -> set[Path]:
        found: set[Path] = set()
        waiting = [self._module]
        while waiting:
            module = waiting.pop()
            for name in _with_packages(module):
                path = _find(name, self._roots)
                if path is not None and path not in found:
                    found.add(path)
                    waiting.extend(_imports(path, name))
        return found


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _files_beside(folder: Path) -> Iterator[Path]:
    is_package = (folder / "__init__.py").exists()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in IGNORED_FOLDERS:
            continue
        if path.is_dir():
            yield from _files_beside(path)
        elif path.suffix != ".py" or not is_package:
            yield path


def _with_packages(module: str) -> Iterator[str]:
    """Yield a module and the packages around it, which are imported before it."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


def _find(module: str, roots: Sequence[Path]) -> Path | None:
    relative = Path(*module.split("."))
    for root in roots:
        for path in (root / relative / "__init__.py", root / relative.with_suffix(".py")):
            if path.is_file():
                return path
    return None


def _imports(path: Path, module: str) -> Iterator[str]:
    """Yield the modules that a source imports, and the names it imports from packages, which may be modules too."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # while it is being written; the process itself says what is wrong
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{name.name}".removeprefix(".") for name in node.names)
