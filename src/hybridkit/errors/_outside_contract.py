"""The error of an answer outside the contract."""

from hybridkit.errors._root import HybridkitError


class ResponseError(HybridkitError):
    """The other side answered something outside the contract: not JSON, cut short, too large, or of another shape.

    Neither waiting nor another request helps: whoever runs the other side, or has configured its URL, has to look.
    A write that was answered like this may have happened.

    Attributes:
        response_status: the HTTP status of the answer.
    """

    code = "BAD_RESPONSE"

    def __init__(self, message: str, *, response_status: int) -> None:
        super().__init__(message)
        self.response_status = response_status
