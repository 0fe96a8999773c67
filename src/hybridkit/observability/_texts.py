"""Texts of foreign values: whatever their `__str__` does, they get a form that UTF-8 can carry."""

import traceback

__all__ = ["class_name", "printable", "stack_of"]


def printable(value: object) -> str:
    """Return a value as a text: a secret type shows its mask, half a surrogate pair its escape."""
    try:
        text = str(value)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 # whatever a foreign __str__ does, its value has a text
        text = f"<{type(value).__name__}: str() failed with {type(error).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()


def stack_of(error: BaseException) -> str:
    """Return the traceback of an error and those of its causes, as Python shows them."""
    try:
        text = "".join(traceback.format_exception(error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as failure:  # noqa: BLE001 # an exception's attributes may be anything
        text = f"{class_name(error)}: its traceback can't be shown ({type(failure).__name__})"
    return printable(text)


def class_name(error: BaseException) -> str:
    """Return the class of an error with its module: `builtins.OSError`."""
    return printable(f"{type(error).__module__}.{type(error).__qualname__}")
