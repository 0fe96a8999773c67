"""A change of a file is told to the processes that depend on it, and to no other."""

import os
from pathlib import Path

import pytest

from hybridkit._cli._dev import _watching
from hybridkit._cli._dev._watching import Sources

FILES = {
    "contracts/__init__.py": "",
    "contracts/users.py": "from . import names\n",
    "contracts/names.py": "",
    "contracts/unused.py": "",
    "api/__init__.py": "",
    "api/main.py": "import os, contracts.users\n\ndef late():\n    from api import routes\n",
    "api/routes.py": "from .parts.one import answer\n",
    "api/parts/__init__.py": "",
    "api/parts/one.py": "answer = 1\n",
    "api/page.html": "",
    "api/migrations/first.py": "",
    "bot/main.py": "",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two services that share contracts."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def touch(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    before = path.stat().st_mtime_ns
    os.utime(path, ns=(before + 1, before + 1))


@pytest.mark.parametrize(
    ("name", "concerned"),
    [
        ("api/main.py", ["api"]),
        ("api/__init__.py", ["api"]),
        ("api/routes.py", ["api"]),
        ("api/parts/one.py", ["api"]),
        ("api/page.html", ["api"]),
        ("api/migrations/first.py", ["api"]),
        ("api/texts/new.po", ["api"]),
        ("contracts/users.py", ["api"]),
        ("contracts/names.py", ["api"]),
        ("contracts/unused.py", []),
        ("bot/main.py", ["bot"]),
        ("bot/new.py", ["bot"]),
        (".env", ["api", "bot"]),
        ("api/__pycache__/main.pyc", []),
        ("api/.main.py.swp", []),
        ("README.md", []),
    ],
)
def test_a_change_concerns_those_that_depend_on_it(project: Path, name: str, concerned: list[str]) -> None:
    """By an import, or as a file in the folder of the module."""
    sources = {each: Sources(f"{each}.main", [project], also=[project / ".env"]) for each in ("api", "bot")}
    assert [each.look() for each in sources.values()] == [[], []]
    touch(project / name)
    assert {each: found for each, source in sources.items() if (found := source.look())} == {
        each: [project / name] for each in concerned
    }
    assert [each.look() for each in sources.values()] == [[], []]


def test_new_imports_are_followed(project: Path) -> None:
    """And removed files are changes."""
    sources = Sources("api.main", [project])
    (project / "api/routes.py").write_text("from contracts import unused\n")
    assert project / "api/routes.py" in sources.look()
    touch(project / "contracts/unused.py")
    assert sources.look() == [project / "contracts/unused.py"]
    (project / "contracts/unused.py").unlink()
    assert sources.look() == [project / "contracts/unused.py"]


def test_a_source_that_is_being_written_is_no_error(project: Path) -> None:
    """Its imports are followed again when it is complete."""
    sources = Sources("api.main", [project])
    whole = (project / "api/main.py").read_text()
    (project / "api/main.py").write_text(f"{whole}\ndef (")
    assert project / "api/main.py" in sources.look()
    (project / "api/main.py").write_text(whole)
    sources.look()
    touch(project / "api/parts/one.py")
    assert sources.look() == [project / "api/parts/one.py"]


def test_a_module_beside_the_manifest_has_no_folder(project: Path) -> None:
    """Only its imports count, as the project's folder has everything."""
    (project / "alone.py").write_text("import contracts.names\n")
    sources = Sources("alone", [project])
    touch(project / "bot/main.py")
    assert sources.look() == []
    touch(project / "contracts/names.py")
    assert sources.look() == [project / "contracts/names.py"]


def test_a_folder_of_data_is_read_in_part(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that looking stays cheap."""
    monkeypatch.setattr(_watching, "MAX_FILES", 1)
    assert "4 files" in repr(Sources("bot.main", [project], also=[project / name for name in FILES][:3]))


def test_a_missing_module_has_no_files(tmp_path: Path) -> None:
    """The process says what is wrong."""
    assert Sources("nothing.main", [tmp_path]).look() == []
