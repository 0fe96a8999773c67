"""Pass arguments by type: read what a handler's annotations ask for, and fill it from what is provided.

```python
plan = plan_injection(handler)
plan.missing({UserCreated, RequestContext})      # the parameters without a provider
await handler(**plan.arguments({UserCreated: event, RequestContext: context}))
```
"""

import builtins
import functools
import inspect
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeAliasType, get_args, get_origin

from hybridkit.errors import DeclarationError

__all__ = ["InjectionPlan", "Wanted", "bare_type", "plan_injection"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One parameter that is filled by type.

    Attributes:
        name: the parameter's name.
        type: the annotation, with `Annotated[X, ...]` and aliases resolved to X.
        optional: whether it has a default, which it keeps where nothing provides the type.
    """

    name: str
    type: Any
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {_type_name(self.type)}"


@dataclass(frozen=True, slots=True)
class InjectionPlan:
    """The parameters of a callable, read once and filled at every call.

    Attributes:
        owner: the callable's qualified name, for messages.
        wanted: the parameters, in their order.
    """

    owner: str
    wanted: tuple[Wanted, ...]

    def missing(self, available: Container[Any]) -> tuple[Wanted, ...]:
        """Return the parameters without a default whose type is not available."""
        return tuple(want for want in self.wanted if not want.optional and want.type not in available)

    def arguments(self, values: Mapping[Any, object]) -> dict[str, Any]:
        """Return the keyword arguments for a call; a parameter with a default and no value keeps its default.

        Raises:
            DeclarationError: required parameters have no value; all of them are named.
        """
        if missing := self.missing(values):
            raise DeclarationError(
                f"nothing provides {', '.join(map(str, missing))} for {self.owner};"
                f" provided are {', '.join(sorted(map(_type_name, values))) or 'no types at all'}"
            )
        return {want.name: values[want.type] for want in self.wanted if want.type in values}


def plan_injection(function: Callable[..., Any], *, skip: Container[str] = ()) -> InjectionPlan:
    """Read the annotations of a function, method, partial or callable object.

    Args:
        function: the callable whose parameters are to be filled.
        skip: the names of parameters that are filled otherwise.

    Raises:
        DeclarationError: a parameter has no annotation, has one that can't be resolved, or can't be passed by name.
    """
    owner = _name_of(function)
    names = _namespace(function)
    wanted = [
        _wanted(parameter, owner, names)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in skip
    ]
    return InjectionPlan(owner, tuple(wanted))


def bare_type(annotation: Any) -> Any:
    """Return the X of `Annotated[X, ...]` and of `type Alias = X`, however deeply they are nested."""
    while True:
        if isinstance(annotation, TypeAliasType):
            annotation = annotation.__value__
        elif get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        else:
            return annotation


def _wanted(parameter: inspect.Parameter, owner: str, names: Mapping[str, Any]) -> Wanted:
    where = f"parameter {parameter.name!r} of {owner}"
    if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
        raise DeclarationError(f"{where} can't be passed by name, so it can't be injected")
    optional = parameter.default is not parameter.empty
    annotation = parameter.annotation
    if annotation is parameter.empty:
        raise DeclarationError(f"{where} has no annotation, and values are injected by type")
    if isinstance(annotation, str):
        annotation = _evaluated(annotation, where, names)
    return Wanted(parameter.name, bare_type(annotation), optional)


def _evaluated(annotation: str, where: str, names: Mapping[str, Any]) -> Any:
    """Evaluate an annotation that is a text, where the function was defined."""
    try:
        # Source code of the handler, not input.
        return eval(annotation, {**vars(builtins), **names})  # noqa: S307 # nosec B307
    except Exception as error:  # an annotation is any expression, so it raises anything
        raise DeclarationError(
            f"{where}: the annotation {annotation!r} can't be resolved ({error});"
            " import the type at run time, outside of `if TYPE_CHECKING:`"
        ) from error


def _namespace(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the names around a function: of its module, and of enclosing functions where it uses them."""
    while isinstance(function, functools.partial):
        function = function.func
    inner = inspect.unwrap(function)
    if not (inspect.isfunction(inner) or inspect.ismethod(inner)):
        inner = type(inner).__call__
    inner = inspect.unwrap(inner)
    found: dict[str, Any] = dict(getattr(inner, "__globals__", {}))
    if inspect.isfunction(inner):
        for name, cell in zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True):
            with suppress(ValueError):  # a name that its function sets later, as another one that it defines
                found[name] = cell.cell_contents
    return found


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__qualname__)


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
