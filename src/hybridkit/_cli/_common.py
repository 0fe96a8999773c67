"""The parts that all commands share: options, the search for declarations, and printing."""

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

SHOWN_CHARS: Final = 1000


def _checked_amqp_url(value: str) -> str:
    return checked_url(value, AmqpUrl)


def checked_url(value: str, kind: Any) -> str:
    """Return a URL after checking its kind.

    Args:
        value: the URL as given.
        kind: the type of URL, such as `hybridkit.settings.AmqpUrl`.

    Raises:
        typer.BadParameter: the URL is not of that kind. The message does not have the URL, which may hold a password.
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
    """Run the asynchronous part of a command; Ctrl-C cancels it, so that its connections are closed.

    Args:
        work: the coroutine.
        deadline_seconds: the deadline of its context. Without one a command waits half a minute for an absent broker.
    """
    context = RequestContext()
    with _no_logs(), bind(context.within(deadline_seconds) if deadline_seconds else context):
        return asyncio.run(work)


def find_instances[T](paths: Iterable[str], kind: type[T]) -> list[T]:
    """Return the objects of a type in some modules, each once, in the order of the modules.

    The top level of each module is searched, with its lists, tuples and sets, but not its submodules.

    Args:
        paths: `package.module`, or `package.module:name` for one object or a collection of them.
        kind: the type of the objects.

    Raises:
        typer.BadParameter: a module can't be imported, or has no object of that type.
    """
    found: dict[int, T] = {}
    for path in paths:
        here = list(instances_of(_values(path), kind))
        if not here:
            hint = "; a package isn't searched, only a module" if _is_package(path) else ""
            raise typer.BadParameter(f"there is no {kind.__name__} in {path}{hint}", param_hint="--app")
        found |= {id(each): each for each in here}
    return list(found.values())


def import_app(path: str, *, param_hint: str = "--app") -> ModuleType:
    """Import a module, with the working directory on the path, as `python -m` does.

    Args:
        path: `package.module`.
        param_hint: the option or argument that gave it, for the error.

    Raises:
        typer.BadParameter: the module does not exist, or raises an error; the message has the place.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(path)
    except Exception as error:  # the application's own code runs here, and raises anything
        raise typer.BadParameter(f"importing {path}: {_in_one_line(error)}", param_hint=param_hint) from error


def print_json(document: Any) -> None:
    """Print one JSON document on standard output, indented."""
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())


def print_table(rows: Sequence[Sequence[object]], *, headers: Sequence[str] = ()) -> None:
    """Print rows of equal length in columns; the last one is not padded."""
    lines = [[str(cell) for cell in row] for row in ([headers] if headers else []) + list(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())


def one_line(value: object, *, max_chars: int = SHOWN_CHARS) -> str:
    """Return a value as one line of at most `max_chars` characters; `-` for None."""
    text = "-" if value is None else printable(" ".join(str(value).split()))
    return text if len(text) <= max_chars else f"{text[:max_chars]}…"


def printable(text: str) -> str:
    """Replace the characters that a terminal would interpret, as messages come from anybody."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def is_terminal() -> bool:
    """Return whether there is a user to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


@contextmanager
def _no_logs() -> Generator[None]:
    """Turn logging off inside the block, as log lines would mix with the results on standard output."""
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


def instances_of[T](values: Iterable[object], kind: type[T]) -> Iterable[T]:
    """Yield the objects of a type among some values, and in the collections among them."""
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from (each for each in cast("Iterable[object]", value) if isinstance(each, kind))


def _in_one_line(error: Exception) -> str:
    """Return an error's message, with its place unless the error is one of ours."""
    said = f"{type(error).__name__}: {error}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "importlib" not in each.filename]
    if isinstance(error, DeclarationError) or len(frames) < 2:
        return said
    return f"{said} ({frames[-1].filename}:{frames[-1].lineno})"
