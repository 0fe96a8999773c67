"""The handlers whose arguments are known before the first update, as no filter or middleware adds any."""

from collections.abc import Iterator
from typing import Any, Final

from aiogram import Dispatcher, Router
from aiogram.dispatcher.event.handler import FilterObject, HandlerObject
from aiogram.dispatcher.event.telegram import TelegramEventObserver
from aiogram.dispatcher.middlewares.data import DispatcherData, FSMData, UserContextData
from aiogram.filters import Command, CommandStart, StateFilter
from magic_filter.operations import CallOperation, ComparatorOperation, GetAttributeOperation

CONTEXT_NAMES: Final = frozenset(
    {
        *DispatcherData.__annotations__,
        *UserContextData.__annotations__,
        *FSMData.__annotations__,
        "update",
        "exception",
        "scenes",
        "command",
    }
)
"""The arguments that Aiogram and its own filters pass by name."""

_PLAIN: Final = (CallOperation, ComparatorOperation, GetAttributeOperation)
"""The operations of `F.text == "a"`, `F.photo` and `F.text.startswith("a")`, which add no arguments."""
_OWN: Final = ("aiogram.dispatcher.", "aiogram.fsm.", "hybridkit.")


def static_handlers(dispatcher: Dispatcher) -> Iterator[tuple[str, str, HandlerObject]]:
    """Yield these handlers with the type of their updates and the name of their router."""
    for router in dispatcher.chain_tail:
        for name, observer in router.observers.items():
            if _is_closed(dispatcher.update) and all(_is_closed(each) for each in _above(router, name)):
                for handler in observer.handlers:
                    if all(map(_adds_nothing, handler.filters or ())):
                        yield name, router.name, handler


def _above(router: Router, name: str) -> Iterator[TelegramEventObserver]:
    for each in router.chain_head:
        yield each.observers[name]


def _is_closed(observer: TelegramEventObserver) -> bool:
    """Return whether only middleware of Aiogram's and ours comes before the observer's handlers."""
    middlewares: list[Any] = [*observer.middleware, *observer.outer_middleware]
    return all(type(each).__module__.startswith(_OWN) for each in middlewares) and all(
        map(_adds_nothing, observer._handler.filters or ())  # noqa: SLF001 - a router's filters have no public name
    )


def _adds_nothing(given: FilterObject) -> bool:
    """Return whether a filter adds no arguments, except for those of Aiogram's own filters."""
    if given.magic is not None:
        operations: Any = given.magic._operations  # noqa: SLF001 - there is no public name
        return all(isinstance(each, _PLAIN) for each in operations)
    own: Any = given.callback
    return type(own) is StateFilter or (type(own) in (Command, CommandStart) and own.magic is None)
