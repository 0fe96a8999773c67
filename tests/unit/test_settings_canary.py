"""A secret planted in every field and every source comes out through `get_secret_value()` only."""

import copy
import json
import logging
import os
import pickle
import pprint
import traceback
import types
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, SecretStr, field_validator

from hybridkit.settings import ApiSettings, BotSettings, PostgresSettings, ServiceSettings, SettingsError

CANARY = "c4n4ry-Zq8vXw2LmN5t-Rk3jHb7PdS9x"
HERE = __file__


class Everything(BotSettings, PostgresSettings):
    """All kinds in one, and what users add."""

    service_name: str = "users_api"
    signing_key: SecretStr
    signing_keys: tuple[SecretStr, ...] = ()


GOOD: dict[str, str] = {
    "sentry_dsn": f"https://{CANARY}:{CANARY}@sentry:9000/42",
    "otel_exporter_otlp_endpoint": f"https://key:{CANARY}@collector:4318/{CANARY}?key={CANARY}",
    "rabbitmq_url": f"amqps://user:{CANARY}@rabbit:5671/vhost",
    "redis_url": f"rediss://:{CANARY}@redis:6379/0?password={CANARY}",
    "redis_cache_url": f"rediss://{CANARY}@redis:6379/1",
    "postgres_service_url": f"https://user:{CANARY}@postgres_service/",
    "mongo_service_url": f"https://{CANARY}:password-long-enough@mongo_service/",
    "bot_token": f"123456:{CANARY}",
    "telegram_api_url": f"https://telegram/{CANARY}/",
    "database_url": f"postgresql://app:{CANARY}@db:5432/app?sslmode=require&application_name={CANARY}",
    "signing_key": CANARY,
    "signing_keys": json.dumps([CANARY, CANARY]),
    "service_token_key": CANARY,
    "service_token_keys": json.dumps({"bot_service": CANARY}),
}


@pytest.fixture(autouse=True)
def _empty_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))


def from_arguments(values: dict[str, str], _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {**values, "signing_keys": [CANARY, CANARY], "service_token_keys": {"bot_service": CANARY}}


def from_environment(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name, value in values.items():
        monkeypatch.setenv(name.upper(), value)
    return {}


def from_files(values: dict[str, str], _: pytest.MonkeyPatch) -> dict[str, Any]:
    for name, value in values.items():
        Path(name).write_text(value)
    return {}


def from_dotenv(values: dict[str, str], _: pytest.MonkeyPatch) -> dict[str, Any]:
    Path(".env").write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))
    return {}


type Source = Callable[[dict[str, str], pytest.MonkeyPatch], dict[str, Any]]
each_source = pytest.mark.parametrize("source", [from_arguments, from_environment, from_files, from_dotenv])


def load(settings: type[ServiceSettings], arguments: dict[str, Any]) -> Any:
    return settings(**arguments)


def outputs_of(settings: ServiceSettings) -> Iterator[object]:
    """Everything that a person, a log or a crash reporter may take from settings."""
    for form in (repr, str, pprint.pformat, "{}".format, lambda it: list(it.__rich_repr__()), dict, vars):
        yield form(settings)
    for dump in (settings.model_dump, settings.model_dump_json):
        yield dump()
        yield dump(exclude_defaults=True, round_trip=True)
    yield settings.model_dump(mode="json")
    yield orjson.dumps(settings.model_dump(), default=str)
    yield settings.model_json_schema()
    yield copy.deepcopy(settings)
    yield settings.model_fields_set
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled") as refused:
            pickle.dumps(settings, protocol=protocol)
        yield refused.value
    with pytest.raises(AttributeError) as frozen:
        setattr(settings, "service_name", CANARY)  # noqa: B010 # type checkers know that it is frozen
    yield frozen.value


def outputs_of_error(error: BaseException) -> Iterator[object]:
    """The error, what is chained to it, and the locals of all frames but the test's own."""
    yield from (str(error), repr(error), error.args, vars(error), pickle.dumps(error.args))
    yield "".join(traceback.format_exception(error))
    for chained in (error.__cause__, error.__context__):
        assert chained is None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename != HERE:
            yield from locals_of(frame)


def locals_of(frame: types.FrameType) -> Iterator[object]:
    for value in frame.f_locals.values():
        if not isinstance(value, BaseModel):  # the half-made settings themselves: they have no fields yet
            yield repr(value)
        else:
            yield vars(value)


def assert_clean(outputs: Iterator[object]) -> None:
    for output in outputs:
        text = output.decode("latin-1") if isinstance(output, bytes) else f"{output!s} {output!r}"
        assert CANARY not in text, text


@pytest.mark.parametrize(
    ("source", "environment"),
    [
        *product([from_arguments, from_environment, from_files], ["development", "test", "production"]),
        (from_dotenv, "development"),
    ],
)
def test_good_settings_show_no_secret(
    source: Source, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever source they come from, in every form that an object can be shown."""
    settings = load(Everything, {"environment": environment, **source(GOOD, monkeypatch)})
    assert_clean(outputs_of(settings))


def test_the_secrets_are_there_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other half of the canary: an empty cage proves nothing."""
    settings = load(Everything, from_environment(GOOD, monkeypatch))
    for name in GOOD.keys() - {"signing_keys", "service_token_keys"}:
        assert getattr(settings, name).get_secret_value() == GOOD[name]
    assert [key.get_secret_value() for key in settings.signing_keys] == [CANARY, CANARY]
    assert settings.service_token_keys["bot_service"].get_secret_value() == CANARY


@each_source
@pytest.mark.parametrize("wrong", [*Everything.model_fields, None])
def test_bad_settings_show_no_secret(
    source: Source, wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One field after the other holds the bare secret, which fits none; at last one field is missing."""
    values = {name: value for name, value in GOOD.items() if name != "rabbitmq_url" or wrong}
    if wrong:
        values[wrong] = f"{CANARY} {CANARY}"
    arguments = source(values, monkeypatch) | (
        {wrong: values[wrong]} if source is from_arguments and wrong else {}
    )
    if wrong in {"host", "management_host", "signing_key", "service_token_key"}:  # any text will do for these
        assert_clean(iter([load(Everything, arguments).signing_key]))
        return
    with pytest.raises(SettingsError) as caught:
        load(Everything, arguments)
    assert wrong is None or any(problem.startswith(wrong.upper()) for problem in caught.value.problems)
    assert_clean(outputs_of_error(caught.value))


@each_source
def test_secrets_refused_by_production_are_not_shown(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names them by their variables only."""
    weak = {name: value.replace("s://", "://").replace("sslmode", "mode") for name, value in GOOD.items()}
    arguments = {"environment": "production", **source(weak, monkeypatch)}
    if source is from_dotenv:
        arguments |= from_files(weak, monkeypatch)
    with pytest.raises(SettingsError) as caught:
        load(Everything, arguments)
    assert len(caught.value.problems) >= 6
    assert_clean(outputs_of_error(caught.value))


@pytest.mark.parametrize("separator", ["@", "/", "?", "#", "[", "]", " ", "\n", "%", ":"])
@pytest.mark.parametrize("name", [name for name in GOOD if name.endswith("_url")])
def test_a_password_that_is_not_escaped_is_not_shown(
    name: str, separator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut by the separator, its parts land where host, port, path, query or fragment should be."""
    url = GOOD[name].partition("://")[0] + f"://user:{CANARY}{separator}{CANARY}@host:1/name"
    arguments = from_environment({**GOOD, name: url}, monkeypatch)
    try:
        settings = load(Everything, arguments)
    except SettingsError as error:
        assert_clean(outputs_of_error(error))
    else:
        assert_clean(outputs_of(settings))


def test_a_file_that_cannot_be_decoded_is_not_shown() -> None:
    """UnicodeDecodeError carries all bytes along."""
    Path("signing_key").write_bytes(CANARY.encode() + b"\xff")
    with pytest.raises(SettingsError) as caught:
        load(Everything, {})
    assert_clean(outputs_of_error(caught.value))
    Path(".env").write_bytes(b"SIGNING_KEY=" + CANARY.encode() + b"\xff\n")
    with pytest.raises(SettingsError) as caught:
        load(Everything, {})
    assert_clean(outputs_of_error(caught.value))


def test_a_validator_that_quotes_the_value_is_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of its message stays."""

    class Careless(ApiSettings):
        signing_key: SecretStr

        @field_validator("signing_key")
        @classmethod
        def _refuse(cls, value: SecretStr) -> SecretStr:
            raise ValueError(f"{value.get_secret_value()} is not good enough")

    with pytest.raises(SettingsError, match=r"SIGNING_KEY: \*+ is not good enough") as caught:
        load(Careless, from_environment(GOOD, monkeypatch))
    assert_clean(outputs_of_error(caught.value))


@each_source
def test_the_debug_switch_of_pydantic_settings_logs_no_secret(
    source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With it, pydantic-settings logs what every source delivered."""
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    with caplog.at_level(logging.DEBUG):
        load(Everything, source(GOOD, monkeypatch))
    assert_clean(iter([caplog.text, *(record.__dict__ for record in caplog.records)]))
