"""The places that values come from, as sources of pydantic-settings.

pydantic-settings has sources of its own. They stop at the first text that is no JSON and chain an error that holds it,
they warn where a directory is missing, and a debug switch of theirs logs every value. These report all problems, and
hand values on wrapped, so that nothing on the way can show them.
"""

import json
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, TypeAliasType, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, DotEnvSettingsSource, PydanticBaseSettingsSource

SECRETS_DIR_VARIABLE: Final = "SECRETS_DIR"
DEFAULT_SECRETS_DIR: Final = "/run/secrets"


class Found:
    """A value on its way from a source to its field; it has no repr, so no log or traceback shows it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Problem(str):
    """The reason why a source can't deliver a value that it has."""

    __slots__ = ()


class Arguments(PydanticBaseSettingsSource):
    """The arguments of the constructor."""

    def __init__(self, settings_cls: type[BaseSettings], arguments: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._arguments = arguments

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return what the wrapped source has for the field."""
        return self._arguments.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        return {name: Found(value) for name, value in self._arguments().items()}


class Environment(PydanticBaseSettingsSource):
    """Environment variables, and the base of the other two places that hold texts under such names."""

    @cached_property
    def texts(self) -> Mapping[str, str | Path]:
        """The texts under upper-case names; a path stands for the content of its file."""
        return {name.upper(): text for name, text in os.environ.items()}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the first text that is not empty, under any name of the field."""
        candidates = (_read(self.texts.get(name)) for name in variables(self.settings_cls, field_name))
        text = next(filter(None, candidates), None)
        return _decode(text, field), key(self.settings_cls, field_name), False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field_name, field in self.settings_cls.model_fields.items():
            value, name, _ = self.get_field_value(field, field_name)
            if value is not None:
                found[name] = value
        # What is wrong with the source as a whole belongs to no field.
        whole = {name: text for name, text in self.texts.items() if isinstance(text, Problem)}
        return found | {name: text for name, text in whole.items() if text not in found.values()}


class SecretFiles(Environment):
    """Mounted secrets, as Docker and Kubernetes make them: a file for each setting, named like its variable."""

    def __init__(self, settings_cls: type[BaseSettings], directory: Any) -> None:
        super().__init__(settings_cls)
        chosen = directory or os.environ.get(SECRETS_DIR_VARIABLE)
        self._directory = Path(chosen or DEFAULT_SECRETS_DIR)
        self._required = bool(chosen)

    @cached_property
    def texts(self) -> Mapping[str, str | Path]:
        """The files of the directory; only those that a field asks for are opened."""
        try:
            return {path.name.upper(): path for path in self._directory.iterdir() if path.is_file()}
        except OSError as error:
            if not self._required and isinstance(error, FileNotFoundError):
                return {}
            return {SECRETS_DIR_VARIABLE: Problem(f"cannot be read as a directory: {error.strerror}")}


class DotEnv(Environment):
    """The `.env` file, for as long as the stronger sources leave the environment at development."""

    def __init__(self, settings_cls: type[BaseSettings], files: Any) -> None:
        super().__init__(settings_cls)
        self._files = files

    @cached_property
    def texts(self) -> Mapping[str, str | Path]:
        """The variables of the file."""
        chosen = self.current_state.get("environment")
        default = self.settings_cls.model_fields["environment"].default
        if (chosen.value if isinstance(chosen, Found) else default) != "development":
            return {}
        try:
            parsed = DotEnvSettingsSource(self.settings_cls, env_file=self._files).env_vars
        except (OSError, UnicodeError):
            return {".env": Problem("cannot be read as UTF-8 text")}
        texts = {name.upper(): text for name, text in parsed.items() if text}
        for name in variables(self.settings_cls, "environment"):
            if texts.get(name, "development") != "development":
                texts[name] = Problem(
                    "cannot be set by .env, which only development reads; set the variable itself"
                )
        return texts


def variables(settings_cls: type[BaseModel], field_name: str) -> tuple[str, ...]:
    """Return the names under which a field is looked up, the preferred one first."""
    alias = settings_cls.model_fields[field_name].validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(choice.upper() for choice in alias.choices if isinstance(choice, str))
    prefix = settings_cls.model_config.get("env_prefix", "")
    return ((alias if isinstance(alias, str) else f"{prefix}{field_name}").upper(),)


def key(settings_cls: type[BaseModel], field_name: str) -> str:
    """Return the name under which the model takes the value of a field."""
    alias = settings_cls.model_fields[field_name].validation_alias
    if isinstance(alias, AliasChoices):
        return next(choice for choice in alias.choices if isinstance(choice, str))
    return alias if isinstance(alias, str) else field_name


def _read(text: str | Path | None) -> str | None:
    if not isinstance(text, Path):
        return text
    try:
        return text.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        return Problem(f"the file {text} cannot be read as UTF-8 text")


def _decode(text: str | None, field: FieldInfo) -> Found | Problem | None:
    if text is None or isinstance(text, Problem):
        return text
    if not _takes_json(field.annotation):
        return Found(text)
    try:
        return Found(json.loads(text))
    except ValueError:
        return Problem('should be JSON, for example ["first", "second"]')


def _takes_json(annotation: Any) -> bool:
    """Return whether the field holds a collection or a model, which a text can only carry as JSON."""
    if isinstance(annotation, TypeAliasType):
        return _takes_json(annotation.__value__)
    origin = get_origin(annotation) or annotation
    if origin in {Annotated, Union, UnionType}:
        return any(map(_takes_json, get_args(annotation)))
    is_group = isinstance(origin, type) and issubclass(origin, Collection | BaseModel)
    return is_group and not issubclass(origin, str | bytes)
