"""Passing arguments by type: what a handler's annotations ask for, and where each value comes from.

```python
plan = plan_injection(handler)
plan.missing({UserCreated, RequestContext})      # what nobody provides
await handler(**plan.arguments({UserCreated: event, RequestContext: context}))
```
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["InjectionPlan", "Wanted", "plan_injection"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One parameter that is filled by type.

    Attributes:
        name: of the parameter.
        type: the annotation, with `Annotated[X, ...]` and aliases resolved to X.
        optional: it has a default, so it may stay without a provider.
    """

    name: str
    type: Any
    optional: bool


@dataclass(frozen=True, slots=True)
class InjectionPlan:
    """What a callable wants, read once and applied per call.

    Attributes:
        owner: the callable's qualified name, for messages.
        wanted: its parameters, in their order.
    """

    owner: str
    wanted: tuple[Wanted, ...]

    def missing(self, available: Container[Any]) -> tuple[Wanted, ...]:
        """The parameters without a default whose type is not available."""
        return tuple(want for want in self.wanted if not want.optional and want.type not in available)

    def arguments(self, values: Mapping[Any, object]) -> dict[str, Any]:
        """The keyword arguments for a call; parameters with a default and no value keep the default.

        Raises:
            DeclarationError: a required parameter has no value; all of them are named.
        """
        raise NotImplementedError


def plan_injection(function: Callable[..., Any], *, skip: Container[str] = ()) -> InjectionPlan:
    """Read the annotations of a function, method or callable object.

    Args:
        function: whose parameters are to be filled.
        skip: names of parameters that somebody else fills.

    Raises:
        DeclarationError: a parameter has no annotation, one that can't be resolved, or can't be passed by name.
    """
    raise NotImplementedError
