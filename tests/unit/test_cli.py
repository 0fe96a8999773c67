"""The command `hybridkit`: groups on demand, one line for an error, exit codes that scripts can use."""

import logging
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog
import typer
from typer.testing import CliRunner, Result

from hybridkit import _cli
from hybridkit._cli import _common, _topology
from hybridkit._cli._app import app
from hybridkit.errors import DeclarationError, NotConnectedError
from hybridkit.messaging import RobustConsumer

ROOT = Path(__file__).resolve().parents[2]
URL = "amqp://guest:s3cret@127.0.0.1:1/"


def hybridkit(*arguments: str, **environment: str | None) -> Result:
    return CliRunner().invoke(app, arguments, env={"RABBITMQ_URL": None, **environment})


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """An application that can be imported."""
    made = ModuleType("app_of_the_test")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def test_the_console_script_is_the_function() -> None:
    """The package installs `hybridkit` as `hybridkit._cli:main`."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"hybridkit": "hybridkit._cli:main"}


def test_help_names_every_group_and_imports_none() -> None:
    """A help page does not load the client of a broker or database."""
    script = (
        "import sys; sys.argv = ['hybridkit', '--help']\n"
        "import atexit; atexit.register(lambda: print(*sys.modules))\n"
        "import hybridkit._cli; hybridkit._cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [name for name in {**_cli.GROUPS, **_cli.COMMANDS} if f"  {name} " not in done.stdout] == []
    assert {"aiormq", "structlog", "pydantic"} & set(done.stdout.split()) == set()


def test_every_group_has_its_module() -> None:
    """The help of each group lists commands."""
    for name in _cli.GROUPS:
        shown = hybridkit(name, "--help")
        assert shown.exit_code == 0
        assert "Commands:" in shown.output


@pytest.mark.parametrize("name", _cli.COMMANDS)
def test_every_command_has_its_module(name: str) -> None:
    """Its help is the command's own, with its arguments."""
    shown = hybridkit(name, "--help")
    assert (shown.exit_code, f"{name} [OPTIONS]" in shown.output) == (0, True)


def test_the_version_is_printed() -> None:
    """It is the version of the package."""
    assert hybridkit("--version").output == "hybridkit 0.1.0\n"


@pytest.mark.parametrize(
    "arguments", [["no_such_group"], ["topology", "no_such_command"], ["topology", "plan"]]
)
def test_wrong_use_is_2(arguments: list[str]) -> None:
    """Unknown commands and options end with exit code 2."""
    assert hybridkit(*arguments).exit_code == 2


def test_without_typer_the_command_says_what_to_install() -> None:
    """The message names the extra, without a traceback."""
    script = "import sys; sys.modules['typer'] = None\nimport hybridkit._cli; hybridkit._cli.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == 'error: the command hybridkit needs an optional dependency: pip install "hybridkit[cli]"\n'
    )


@pytest.mark.parametrize(
    ("raised", "code", "printed"),
    [(NotConnectedError("no broker"), 1, "error: no broker\n"), (KeyboardInterrupt(), 130, "")],
)
def test_what_a_command_raises_becomes_a_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, raised: BaseException, code: int, printed: str
) -> None:
    """An error of hybridkit is one line and code 1, and Ctrl-C is 130."""

    def fail(*_: object, **__: object) -> None:
        raise raised

    module.__dict__["consumer"] = RobustConsumer("tests.consumer")
    monkeypatch.setattr(_topology, "plan_topology", fail)
    done = hybridkit("topology", "plan", "--app", module.__name__, RABBITMQ_URL=URL)
    assert (done.exit_code, done.output) == (code, printed)


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "amqp://guest:s3cret@host/@"])
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    """The message names the option only."""
    done = hybridkit("topology", "plan", "--app", "json", "--url", url)
    assert done.exit_code == 2
    assert "--url" in done.output
    assert "s3cret" not in done.output


def test_what_an_application_declares_is_found_once(module: ModuleType) -> None:
    """An object that is in a list too, or has two names, is returned once."""
    first, second, third = (RobustConsumer(f"tests.{name}") for name in ("first", "second", "third"))
    module.__dict__.update(first=first, both=[first, second, "x"], mapping={"third": third}, again=second)
    assert _common.find_instances([module.__name__], RobustConsumer) == [first, second]
    assert _common.find_instances([f"{module.__name__}:again", module.__name__], RobustConsumer) == [
        second,
        first,
    ]
    assert _common.find_instances([f"{module.__name__}:both"], RobustConsumer) == [first, second]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_module", "importing no_such_module: ModuleNotFoundError"),
        ("json:no_such_name", "the module json has no 'no_such_name'"),
        ("json:dumps", r"there is no RobustConsumer in json:dumps$"),
        ("string", r"there is no RobustConsumer in string$"),
        ("json", "a package isn't searched, only a module"),
    ],
)
def test_an_application_that_is_not_there_is_wrong_use(path: str, said: str) -> None:
    """The message says whether the module or the object is missing."""
    with pytest.raises(typer.BadParameter, match=said):
        _common.find_instances([path], RobustConsumer)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*failing_app\.py:1\)$"),
        ("from hybridkit.errors import *\nraise DeclarationError('twice')", "DeclarationError: twice$"),
    ],
)
def test_an_application_that_fails_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    """The line has the place, except for hybridkit's errors, which say what to do."""
    (tmp_path / "failing_app.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(tmp_path)])
    with pytest.raises(typer.BadParameter, match=said) as refused:
        _common.import_app("failing_app")
    assert isinstance(refused.value.__cause__, ZeroDivisionError | DeclarationError)


def test_an_application_is_imported_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is added to the path once."""
    (tmp_path / "app_of_here.py").write_text("numbers = (1, 2)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    assert _common.find_instances(["app_of_here"], int) == [1, 2]
    assert sys.path.count(str(tmp_path)) == 1
    assert _common.import_app("app_of_here").numbers == (1, 2)
    assert sys.path.count(str(tmp_path)) == 1


def test_logs_do_not_mix_with_results(capfd: pytest.CaptureFixture[str]) -> None:
    """Logging is off during a command, also that of libraries, and then as before."""

    async def work() -> int:
        structlog.get_logger("tests").error("lost")
        logging.getLogger("tests").critical("lost")
        return 1

    before = structlog.get_config()
    assert _common.run(work()) == 1
    assert capfd.readouterr() == ("", "")
    assert structlog.get_config() == before
    assert logging.root.manager.disable == logging.NOTSET


def test_tables_have_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as their longest cell, and no rows print nothing."""
    _common.print_table([("a", 10), ("long", 2)], headers=("name", "count"))
    _common.print_table([])
    assert capsys.readouterr().out == "name  count\na     10\nlong  2\n"


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """It is indented by two spaces."""
    document: dict[str, Any] = {"a": [1], "b": None}
    _common.print_json(document)
    assert capsys.readouterr().out == '{\n  "a": [\n    1\n  ],\n  "b": null\n}\n'
