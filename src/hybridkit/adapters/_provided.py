"""The dependency of FastAPI's routes that is what the running application provides of a type."""

from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from hybridkit.adapters.localization import Translator, translator
from hybridkit.context import RequestContext, current
from hybridkit.errors import DeclarationError

if TYPE_CHECKING:
    from hybridkit.lifespan import ServiceResources


class ProvidedByType:
    """A dependency that returns what the running application has of a type.

    It equals the type, so that `app.dependency_overrides` takes the type as its key.

    Args:
        type_: the type, a class or whatever else an annotation may be.
    """

    def __init__(self, type_: Any) -> None:
        self.type = type_

    def __repr__(self) -> str:
        return f"ProvidedByType({type_name(self.type)})"

    def __hash__(self) -> int:
        return hash(self.type)

    def __eq__(self, other: object) -> bool:
        return bool(self.type == (other.type if isinstance(other, ProvidedByType) else other))

    async def __call__(self, connection: HTTPConnection) -> object:  # a plain function would run in a thread
        """Return the value for a request.

        Raises:
            DeclarationError: the application has no provider of the type.
        """
        if self.type is RequestContext:
            return current()
        if self.type is Translator:
            return translator()
        resources: ServiceResources = connection.app.state.resources
        if self.type not in resources.providers:
            raise unprovided(type_name(self.type))
        return resources.providers[self.type]


def unprovided(names: str) -> DeclarationError:
    """Return the error for types that nothing provides."""
    return DeclarationError(
        f"nothing provides {names}: the settings class of the application has to name it (ApiSettings has everything),"
        " and outside of development a data service's URL has to be set (POSTGRES_SERVICE_URL, MONGO_SERVICE_URL); of"
        " your own it is what `lifespan=` yields by its type"
    )


def type_name(type_: Any) -> str:
    """Return the name of a type for messages."""
    return getattr(type_, "__name__", None) or str(type_)
