"""From a problem code on the wire to the class of the error."""

from typing import Final

from hybridkit.errors._misuse import MisuseError
from hybridkit.errors._outside_contract import ResponseError
from hybridkit.errors._rejected import RejectedError
from hybridkit.errors._root import HybridkitError
from hybridkit.errors._temporary import TemporaryError
from hybridkit.errors._unknown import OutcomeUnknownError

_BRANCHES: Final = (TemporaryError, RejectedError, MisuseError, ResponseError, OutcomeUnknownError)


def error_for_code(code: str) -> type[HybridkitError] | None:
    """Return the most general error class with that problem code, or None for a code that no class has."""
    return _BY_CODE.get(code)


def register_code(error: type[HybridkitError]) -> None:
    """Let `error_for_code` return this class for its code."""
    _BY_CODE[error.code] = error


def _collect() -> dict[str, type[HybridkitError]]:
    found: dict[str, type[HybridkitError]] = {HybridkitError.code: HybridkitError}
    pending: list[type[HybridkitError]] = [*_BRANCHES]
    while pending:
        error = pending.pop(0)
        found.setdefault(error.code, error)
        pending.extend(error.__subclasses__())
    return found


_BY_CODE: Final[dict[str, type[HybridkitError]]] = _collect()
