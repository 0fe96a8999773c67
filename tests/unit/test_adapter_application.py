"""What an application opens for itself and provides to its handlers."""

import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from importlib.machinery import ModuleSpec
from typing import Any, NewType

import pytest

from hybridkit.adapters._running import _watchdog, open_application
from hybridkit.errors import DeclarationError
from hybridkit.lifespan import ServiceResources
from hybridkit.settings import ServiceSettings

City = NewType("City", str)


async def provided(yielded: Mapping[Any, object]) -> Mapping[type, object]:
    @asynccontextmanager
    async def lifespan(resources: ServiceResources) -> AsyncGenerator[Mapping[Any, object]]:
        yield yielded

    async with ServiceResources() as resources:
        await open_application(resources, lifespan)
        return dict(resources.providers)


@pytest.mark.parametrize("key", ["nope", 1, None, "Mailer"])
async def test_a_key_that_is_no_type_is_refused(key: object) -> None:
    """Handlers ask by type, so no handler could get the value."""
    with pytest.raises(DeclarationError, match="the lifespan yields"):
        await provided({int: 1, key: 1})


async def test_whatever_an_annotation_can_be_is_a_key() -> None:
    """Classes, generic aliases and new types are accepted."""
    yielded = {dict: {}, list[int]: [1], City: "Tbilisi"}
    assert dict(await provided(yielded)) == yielded


@pytest.mark.parametrize(
    ("command", "module", "armed"),
    [
        ("/usr/bin/uvicorn", "__main__", True),
        ("/venv/lib/uvicorn/__main__.py", "uvicorn.__main__", True),
        ("/usr/bin/gunicorn", "__main__", True),
        ("/usr/bin/pytest", "pytest.__main__", False),
    ],
)
def test_calls_into_c_are_watched_where_a_server_runs_the_process(
    monkeypatch: pytest.MonkeyPatch, command: str, module: str, *, armed: bool
) -> None:
    """In a test the one timer of the process is pytest's."""
    monkeypatch.setattr(sys, "argv", [command])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(module, None))
    assert _watchdog(ServiceSettings(service_name="api"))._watches_c_calls is armed
