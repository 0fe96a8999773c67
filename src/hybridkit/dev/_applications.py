"""The settings class of an application, found in the module that is run as its process."""

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

from hybridkit.errors import DeclarationError
from hybridkit.settings import ServiceSettings


def load_application(path: str) -> ModuleType:
    """Import the module of an application, as `python -m` finds it.

    Raises:
        DeclarationError: the module does not exist.
    """
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
            raise
        raise DeclarationError(f"there is no module {path}: name it as in `python -m {path}`") from None


def applications_of(module: ModuleType) -> list[Any]:
    """Return the applications of `create_app` and `create_data_service` in a module."""
    return [value for value in vars(module).values() if _declared_settings(value) is not None]


def settings_class_of(module: ModuleType) -> type[ServiceSettings]:
    """Return the settings class of a module's application.

    That of its `create_app` or `create_data_service`; else the settings class that the module declares or imports,
    where classes of hybridkit count only when there is no other, and base classes only without their subclasses.

    Raises:
        DeclarationError: there is none, or several.
    """
    declared = [_declared_settings(value) for value in applications_of(module)]
    classes = _most_derived(each for each in declared if each is not None)
    if not classes:
        found = {value for value in vars(module).values() if _is_settings_class(value)}
        own = {each for each in found if not each.__module__.startswith("hybridkit.")}
        classes = _most_derived(own or found)
    if len(classes) != 1:
        which = ", ".join(sorted(each.__name__ for each in classes)) or "none"
        raise DeclarationError(
            f"{module.__name__} should have one settings class, and has {which}: declare the one of its process there,"
            " or import it"
        )
    return classes[0]


def _declared_settings(value: object) -> type[ServiceSettings] | None:
    if isinstance(value, type):
        return None
    declared = getattr(getattr(value, "state", None), "settings_class", None)
    return declared if _is_settings_class(declared) else None


def _is_settings_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, ServiceSettings)


def _most_derived(classes: Iterable[type[ServiceSettings]]) -> list[type[ServiceSettings]]:
    distinct = set(classes)
    return [each for each in distinct if not any(issubclass(other, each) for other in distinct - {each})]
