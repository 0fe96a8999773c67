"""`import hybridkit` costs next to nothing: no third-party package is loaded before it is used; each module imports."""

import importlib
import subprocess
import sys

import pytest

import hybridkit

LOADED = """
import sys
before = set(sys.modules)
import hybridkit
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
EVERY_MODULE = """
import importlib, pkgutil, sys
import hybridkit
for module in pkgutil.walk_packages(hybridkit.__path__, "hybridkit."):
    if not module.name.endswith(("__main__", "._migrations.env")):  # what runs when it is imported
        importlib.import_module(module.name)
        print(module.name)
"""


def test_importing_the_package_loads_nothing_but_itself_and_the_standard_library() -> None:
    """Every name is loaded when it is first used."""
    done = subprocess.run([sys.executable, "-I", "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "hybridkit" in loaded
    assert loaded - sys.stdlib_module_names == {"hybridkit"}


def test_every_exported_name_is_there() -> None:
    """And in `dir()`, for completion."""
    names = hybridkit.__all__
    assert [name for name in names if getattr(hybridkit, name, None) is None] == []
    assert len(set(names)) == len(names)
    assert set(names) <= set(dir(hybridkit))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of every module."""
    module = importlib.import_module("hybridkit")
    assert not hasattr(module, "no_such_name")


@pytest.mark.usefixtures("measured_processes")
def test_every_module_can_be_imported() -> None:
    """In one process, whose coverage is that of every module's own lines: see `tests/helpers/_measuring.py`."""
    done = subprocess.run([sys.executable, "-c", EVERY_MODULE], stdout=subprocess.PIPE, text=True, check=True)
    assert {"hybridkit.codec", "hybridkit.dataservice._postgres._store"} <= set(done.stdout.split())
