"""The names of `hybridkit.security`: loaded when they are used, with an error that names the extra that they lack."""

import importlib.util
import sys
from typing import NoReturn

import pytest

from hybridkit import security
from hybridkit.errors import MissingExtraError
from hybridkit.security import _policies


@pytest.mark.parametrize("missing", ["jwt", "cryptography.hazmat", "argon2"])
def test_a_name_whose_packages_are_missing_tells_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a submodule of such a package."""
    monkeypatch.delitem(vars(security), "Passwords", raising=False)
    monkeypatch.setattr(security, "import_module", _failing(missing))
    with pytest.raises(MissingExtraError, match=r'pip install "hybridkit\[security\]"'):
        _ = security.Passwords


def test_another_missing_module_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would send whoever reads it to the wrong package."""
    monkeypatch.delitem(vars(security), "Passwords", raising=False)
    monkeypatch.setattr(security, "import_module", _failing("something_else"))
    with pytest.raises(ModuleNotFoundError, match="something_else"):
        _ = security.Passwords


def test_names_are_listed_and_unknown_ones_are_none() -> None:
    """As of any module."""
    assert {"Passwords", "Security", "require"} <= set(dir(security))
    with pytest.raises(AttributeError, match="no attribute 'Unheard'"):
        _ = security.Unheard


def test_policies_name_the_extra_of_the_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are dependencies of FastAPI's."""
    monkeypatch.setitem(sys.modules, "fastapi", None)
    spec = importlib.util.spec_from_file_location(_policies.__name__, _policies.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtraError, match=r'pip install "hybridkit\[fastapi\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _failing(missing: str) -> object:
    def fail(name: str) -> NoReturn:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    return fail
