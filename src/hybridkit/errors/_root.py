"""The root of the error tree."""

from typing import ClassVar


class HybridkitError(Exception):
    """The root: catch it to catch everything that hybridkit raises on purpose.

    Attributes:
        code: the problem code on the wire, upper case, stable over releases.
        status: the HTTP status with which a data service answers.
        retryable: whether the same call can succeed when it is made again later.
    """

    code: ClassVar[str] = "ERROR"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
