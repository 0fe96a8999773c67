"""The words of a dead letter: every error has some, and AMQP can carry them."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp.commands import Basic

from hybridkit.errors import UnavailableError
from hybridkit.messaging._amqp._frames import DeliverMethod, encode_fields
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._pause_gate import PauseGate
from hybridkit.messaging._consuming._verdict import DeadLettered
from hybridkit.observability import class_name, printable, stack_of

pytestmark = pytest.mark.usefixtures("logs")


class Odd(BaseException):
    """What a library written in Rust raises when it panics."""


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class EmptyError(Exception):
    def __str__(self) -> str:
        return cast("str", None)


def _named(name: str, module: object) -> Exception:
    return _class(__qualname__=name, __module__=module)("no")


def _class(**attributes: object) -> type[Exception]:
    return cast("type[Exception]", type("HalfError", (Exception,), attributes))


def _caused() -> Exception:
    error = ValueError("no")
    error.__cause__ = ValueError("half of it: \ud83d")
    error.add_note("\udc00")
    return error


def _syntax() -> Exception:
    error = SyntaxError("no")
    error.lineno, error.text, error.offset = cast("Any", [object()]), cast("Any", 5), cast("Any", "x")
    error.filename = "\ud83d"
    return error


TEXTS: Mapping[str, Callable[[], BaseException]] = {
    "half an emoji": lambda: ValueError("unexpected reply: \ud83d"),
    "half an emoji of ours": lambda: UnavailableError("\udfff"),
    "half an emoji in its cause": _caused,
    "in a group": lambda: BaseExceptionGroup("\ud83d", [ValueError("\ud83d"), Odd("\ud83d")]),
    "in the name of its class": lambda: _named("Half\ud83d", "tests"),
    "in the name of its module": lambda: _named("Half", "\ud83d"),
    "no module": lambda: _named("Half", None),
    "a long name": lambda: _named("N" * 100_000, "tests"),
    "no words": SilentError,
    "None for words": EmptyError,
    "caused by one without words": lambda: _from(SilentError()),
    "endless": lambda: ValueError("\N{PILE OF POO}" * 200_000),
    "endless and half": lambda: ValueError("\ud83d" * 100_000),
    "zeros": lambda: ValueError("\0" * 10),
    "a syntax error of nonsense": _syntax,
    "bytes": lambda: UnicodeDecodeError("utf-8", b"\xff" * 9, 0, 1, "no"),
}


def _from(cause: BaseException) -> Exception:
    error = ValueError("no")
    error.__cause__ = cause
    return error


def headers_of(error: BaseException, **headers: str) -> Mapping[str, Any]:
    """Return the headers of the dead letter of a message with these headers."""
    properties = cast("Any", Basic.Properties(headers=cast("Any", headers))).marshal()
    delivered = IncomingMessage(DeliverMethod(1, False, "hk.events", "texts.told"), properties, b"{}")
    return (
        Delivery("tests.texts", cast("Any", None), delivered)
        .dead_letter(DeadLettered("permanent", error, 1))
        .headers
    )


@pytest.mark.parametrize("text", TEXTS)
def test_every_error_has_a_dead_letter(text: str) -> None:
    """Any text, class or traceback of an error fits into the headers of a dead letter."""
    headers = headers_of(TEXTS[text](), tenant="t" * 200_000, small="s" * 60_000)
    assert len(encode_fields(headers)) < 120_000
    assert all(headers[name] for name in ("hk_error_type", "hk_error", "hk_stack"))


@pytest.mark.parametrize("text", TEXTS)
async def test_every_error_can_be_the_reason_of_a_pause(text: str) -> None:
    """A pause has a reason that can be encoded, whatever the error's text is."""
    gate = PauseGate("tests.texts")
    gate.shut(TEXTS[text]())
    assert gate.paused is not None
    assert gate.paused.reason.encode()
    gate.stop()


@settings(max_examples=50)
@given(text=st.text(st.characters(codec=None, categories=None), max_size=40))
def test_the_words_of_every_error_are_kept(text: str) -> None:
    """An error's text reaches the header in full, with what UTF-8 can't carry escaped."""
    kept = headers_of(ValueError(text))["hk_error"]
    assert kept == text.encode("utf-8", "backslashreplace").decode()


def test_words_that_are_no_words_are_named() -> None:
    """An error whose text or traceback can't be made is named by its class and the reason."""

    def hide(_: object) -> None:
        raise RuntimeError

    hidden = _class(__cause__=property(hide))
    assert printable(SilentError()) == "<SilentError: str() failed with RuntimeError>"
    assert stack_of(hidden()).endswith("HalfError: its traceback can't be shown (RuntimeError)")
    assert class_name(OSError()) == "builtins.OSError"
