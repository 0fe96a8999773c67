"""Handlers whose arguments are known before there is an update: nobody's filter or middleware adds any."""

from collections.abc import Iterator
from typing import Any, Final

from aiogram import Dispatcher, Router
from aiogram.dispatcher.event.handler import FilterObject, HandlerObject
from aiogram.dispatcher.event.telegram import TelegramEventObserver
from aiogram.dispatcher.middlewares.data import DispatcherData, FSMData, UserContextData
from aiogram.filters import Command, CommandStart, StateFilter
from magic_filter.operations import CallOperation, ComparatorOperation, GetAttributeOperation

__all__ = ["CONTEXT_NAMES", "static_handlers"]

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
"""What Aiogram and its own filters give by name."""

_PLAIN: Final = (CallOperation, ComparatorOperation, GetAttributeOperation)
"""`F.text == "a"`, `F.photo`, `F.text.startswith("a")`: what they give is no mapping of names."""
_OWN: Final = ("aiogram.dispatcher.", "aiogram.fsm.", "hybridkit.")


def static_handlers(dispatcher: Dispatcher) -> Iterator[tuple[str, str, HandlerObject]]:
    """Those handlers, with their kind of update and the name of their router."""
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
    """Whether only Aiogram's own and ours stand before its handlers."""
    middlewares: list[Any] = [*observer.middleware, *observer.outer_middleware]
    return all(type(each).__module__.startswith(_OWN) for each in middlewares) and all(
        map(_adds_nothing, observer._handler.filters or ())  # noqa: SLF001 - where a router's filters are
    )


def _adds_nothing(given: FilterObject) -> bool:
    """Whether a filter only says yes or no, or adds what Aiogram's own do."""
    if given.magic is not None:
        operations: Any = given.magic._operations  # noqa: SLF001 - nothing else tells
        return all(isinstance(each, _PLAIN) for each in operations)
    own: Any = given.callback
    return type(own) is StateFilter or (type(own) in (Command, CommandStart) and own.magic is None)
