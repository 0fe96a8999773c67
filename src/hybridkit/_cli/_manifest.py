"""The manifest of a project, `hybridkit.toml`: the names of its services, and what their code can't know.

```toml
name = "shop"

[services.db_postgres_service]
[services.api_service]
module = "shop.api.main"
environment = { PAYMENT_URL = "https://payments.example" }
```

Kind, settings, resources, consumers and ports of a service are read from its code.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from hybridkit._syntax import NAME_SYNTAX
from hybridkit.errors import DeclarationError

FILE_NAME: Final = "hybridkit.toml"


def _spelled(syntax: re.Pattern[str], expected: str) -> AfterValidator:
    def check(text: str) -> str:
        if not syntax.fullmatch(text):
            raise PydanticCustomError("spelling", "this should be {expected}", {"expected": expected})
        return text

    return AfterValidator(check)


type Name = Annotated[str, _spelled(NAME_SYNTAX, "a name in snake_case, such as api_service")]
type Module = Annotated[
    str, _spelled(re.compile(r"\w+(\.\w+)*"), "a module as in `python -m MODULE`, such as api_service.main")
]
type Variable = Annotated[str, _spelled(re.compile(r"[A-Z][A-Z0-9_]*"), "a variable, such as PAYMENT_URL")]


class ServiceTable(BaseModel, extra="forbid", frozen=True, strict=True):
    """A service of the project.

    Attributes:
        module: the module that is run, as in `python -m MODULE`; None for `NAME.main`.
        environment: its settings by the names of their variables, without secrets.
    """

    module: Module | None = None
    environment: dict[Variable, str] = Field(default_factory=dict[str, str])


class Manifest(BaseModel, extra="forbid", frozen=True, strict=True):
    """A project.

    Attributes:
        name: the name of the project, in snake_case.
        services: its services by name, in the order of the file.
    """

    name: Name
    services: dict[Name, ServiceTable] = Field(min_length=1)

    def modules(self) -> dict[str, str]:
        """Return the module of each service by its name."""
        return {name: service.module or f"{name}.main" for name, service in self.services.items()}


def find_manifest(directory: Path) -> Path | None:
    """Return the manifest of a folder or of the nearest one above it that has one; None where none has."""
    candidates = (each / FILE_NAME for each in (directory, *directory.parents))
    return next((path for path in candidates if path.is_file()), None)


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        DeclarationError: it is no TOML, or has problems; the message names all of them.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeclarationError(f"{path} is no TOML: {error}") from None
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        problems = "\n".join(f"  {problem}" for problem in _problems(error.errors(include_url=False)))
        raise DeclarationError(f"{path} has problems:\n{problems}") from None


def _problems(errors: Sequence[ErrorDetails]) -> Iterator[str]:
    for error in errors:
        path = [str(part) for part in error["loc"] if part != "[key]"]
        is_unknown = error["type"] == "extra_forbidden"
        yield f"{'.'.join(path)}: {_unknown(path) if is_unknown else error['msg']}"


def _unknown(path: Sequence[str]) -> str:
    known = (ServiceTable if path[0] == "services" else Manifest).model_fields
    near = get_close_matches(path[-1], known, n=1)
    return f"unknown key; {f'did you mean {near[0]}?' if near else f'known are {", ".join(known)}'}"
