"""Look at an error instead of ending with it."""

from collections.abc import Awaitable

from hybridkit.errors import HybridkitError


async def error_of(work: Awaitable[object]) -> type[HybridkitError] | None:
    """Return the class of the typed error that ends the work, if one does."""
    try:
        await work
    except HybridkitError as error:
        return type(error)
    return None
