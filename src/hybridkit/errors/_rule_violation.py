"""A refusal by a rule of the business, with a code of the application's own."""

import re
from collections.abc import Sequence
from typing import Any, Final

from hybridkit.errors._codes import error_for_code, register_code
from hybridkit.errors._field_problem import FieldProblem
from hybridkit.errors._misuse import DeclarationError
from hybridkit.errors._rejected import RejectedError

_CODE_SYNTAX: Final = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", re.ASCII)
_MAX_CODE_LENGTH: Final = 63


class RuleViolationError(RejectedError):
    """A rule of the business forbids it: every copy is lent out, the order has been shipped.

    Subclass it once for each rule, where both sides import it. An API and a data service's own call answer 409 with the
    class's code, and a client raises the class again:

    ```python
    class BookLentError(RuleViolationError):
        code = "BOOK_LENT"


    raise BookLentError("every copy of this book is lent out")
    ```

    Public callers read the message. A client that doesn't know the class raises `RuleViolationError` with the code.

    Args:
        message: a sentence for whoever made the request.
        errors: the places in the request that the rule is about, such as fields of a form.
        code: the code on the wire; None for the class's own.

    Attributes:
        errors: as in the arguments.

    Raises:
        DeclarationError: a subclass declares no code of its own, one that isn't in upper snake case with at most 63
            characters, or one that another error has.
    """

    code = "RULE_VIOLATION"
    status = 409

    def __init__(self, message: str, *, errors: Sequence[FieldProblem] = (), code: str | None = None) -> None:
        super().__init__(message)
        self.errors = tuple(errors)
        if code is not None:
            self.code = code  # type: ignore[misc] # of a class that this process doesn't know

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if (
            "code" not in vars(cls)
            or not _CODE_SYNTAX.fullmatch(cls.code)
            or len(cls.code) > _MAX_CODE_LENGTH
        ):
            raise DeclarationError(
                f'{cls.__name__} needs a code of its own in upper snake case, such as code = "BOOK_LENT",'
                f" of at most {_MAX_CODE_LENGTH} characters"
            )
        known = error_for_code(cls.code)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise DeclarationError(f"{cls.__name__}: {known.__name__} has the code {cls.code!r} already")
        register_code(cls)


register_code(RuleViolationError)
