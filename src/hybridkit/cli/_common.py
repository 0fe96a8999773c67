"""What all commands share: their options, finding what an application declares, and printing."""

import asyncio
import logging
import sys
import traceback
from collections.abc import Coroutine, Generator, Iterable, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Final, cast

import orjson
import structlog
import typer
from pydantic import TypeAdapter, ValidationError

from hybridkit.context import RequestContext, bind
from hybridkit.errors import DeclarationError
from hybridkit.settings import AmqpUrl, SecretUrl

__all__ = [
    "AppOption",
    "JsonOption",
    "UrlOption",
    "checked_url",
    "find",
    "import_app",
    "is_terminal",
    "print_json",
    "print_table",
    "printable",
    "run",
    "shown",
]

SHOWN_CHARS: Final = 1000


def _checked_amqp_url(value: str) -> str:
    return checked_url(value, AmqpUrl)


def checked_url(value: str, kind: Any) -> str:
    """The URL, if it is one of that kind.

    Args:
        value: what was given.
        kind: such as `hybridkit.settings.AmqpUrl`.

    Raises:
        typer.BadParameter: it is none; without the value, which may hold a password.
    """
    try:
        url: SecretUrl = TypeAdapter[SecretUrl](kind).validate_python(value)
    except ValidationError as error:
        raise typer.BadParameter(error.errors(include_input=False)[0]["msg"]) from None
    return url.get_secret_value()


UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="RABBITMQ_URL",
        callback=_checked_amqp_url,
        metavar="URL",
        help="amqp://user:password@host:port/vhost. As an option its password is seen by whoever lists processes.",
    ),
]
AppOption = Annotated[
    list[str],
    typer.Option(
        "--app",
        metavar="MODULE[:NAME]",
        help="The module that declares consumers or events, as it is imported from here: worker_service.main, or"
        " worker_service.main:analytics for one object. May be given several times.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def run[T](work: Coroutine[Any, Any, T], *, deadline_seconds: float | None = None) -> T:
    """Run the asynchronous half of a command; Ctrl-C cancels it, so that its connections are closed.

    Args:
        work: the coroutine.
        deadline_seconds: of its context; without one a broker that is not there is waited for half a minute.
    """
    context = RequestContext()
    with _no_logs(), bind(context.within(deadline_seconds) if deadline_seconds else context):
        return asyncio.run(work)


def find[T](paths: Iterable[str], kind: type[T]) -> list[T]:
    """The objects of that kind in the modules, each once, in the order in which they are found.

    A module is searched with the lists, tuples and other iterables of its top level, but not its submodules.

    Args:
        paths: `package.module`, or `package.module:name` for one object or an iterable of them.
        kind: what they must be instances of.

    Raises:
        typer.BadParameter: nothing can be imported from there, or nothing of that kind is in it.
    """
    found: dict[int, T] = {}
    for path in paths:
        here = list(_instances(_values(path), kind))
        if not here:
            hint = "; a package isn't searched, only a module" if _is_package(path) else ""
            raise typer.BadParameter(f"there is no {kind.__name__} in {path}{hint}", param_hint="--app")
        found |= {id(each): each for each in here}
    return list(found.values())


def import_app(path: str) -> ModuleType:
    """The module, with the working directory on the path as `python -m` has it.

    Raises:
        typer.BadParameter: it isn't there, or it fails while it is imported; the place is named.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(path)
    except Exception as error:  # the application's own code runs here, and raises anything
        raise typer.BadParameter(f"importing {path}: {_in_one_line(error)}", param_hint="--app") from error


def print_json(document: Any) -> None:
    """One JSON document, indented, on standard output."""
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())


def print_table(rows: Sequence[Sequence[object]], *, headers: Sequence[str] = ()) -> None:
    """Rows of equal length in columns as wide as they need to be, the last one unpadded."""
    lines = [[str(cell) for cell in row] for row in ([headers] if headers else []) + list(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())


def shown(value: object, *, most: int = SHOWN_CHARS) -> str:
    """In one line, and not too long."""
    text = "-" if value is None else printable(" ".join(str(value).split()))
    return text if len(text) <= most else f"{text[:most]}…"


def printable(text: str) -> str:
    """A message comes from anybody, and a terminal obeys the characters that aren't seen."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def is_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


@contextmanager
def _no_logs() -> Generator[None]:
    """Log lines of a service would go to standard output, between the results; what matters to a command is raised."""
    before, disabled = structlog.get_config(), logging.root.manager.disable
    structlog.configure(processors=[_drop])
    logging.disable()
    try:
        yield
    finally:
        structlog.configure(**before)
        logging.disable(disabled)


def _drop(*_: object) -> Any:
    raise structlog.DropEvent


def _is_package(path: str) -> bool:
    return hasattr(sys.modules.get(path), "__path__")


def _values(path: str) -> Iterable[object]:
    name, _, attribute = path.partition(":")
    module = import_app(name)
    if not attribute:
        return vars(module).values()
    if not hasattr(module, attribute):
        raise typer.BadParameter(f"the module {name} has no {attribute!r}", param_hint="--app")
    return [getattr(module, attribute)]


def _instances[T](values: Iterable[object], kind: type[T]) -> Iterable[T]:
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from (each for each in cast("Iterable[object]", value) if isinstance(each, kind))


def _in_one_line(error: Exception) -> str:
    """What happened and where, of our own errors only what."""
    said = f"{type(error).__name__}: {error}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "importlib" not in each.filename]
    if isinstance(error, DeclarationError) or len(frames) < 2:
        return said
    return f"{said} ({frames[-1].filename}:{frames[-1].lineno})"
