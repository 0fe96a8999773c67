import copy
import os
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AliasChoices, BaseModel, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from hybridkit.settings import (
    ApiSettings,
    BotSettings,
    MongoSettings,
    PostgresSettings,
    RabbitSettings,
    SecretUrl,
    ServiceSettings,
    SettingsError,
    WorkerSettings,
)

type Names = tuple[str, ...]


class Limits(BaseModel):
    per_minute: int


class Settings(ServiceSettings):
    service_name: str = "users_api"
    region: str = "none"
    tags: list[str] | None = None
    names: Names = ()
    limits: Limits = Limits(per_minute=1)
    label: Annotated[str, Field(validation_alias=AliasChoices("team_label", "label"))] = "default"
    owner: str = Field(default="nobody", validation_alias="team_owner")


@pytest.fixture(autouse=True)
def secrets_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable of the machine's, an empty directory to stand in, and another for secrets."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    (tmp_path / "work").mkdir()
    (tmp_path / "secrets").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "secrets"))
    return tmp_path / "secrets"


def load[S: ServiceSettings](settings: type[S], **arguments: Any) -> S:
    """For arguments that type checkers refuse, as they know no sources and no texts in place of values."""
    return settings(**arguments)


def problems_of(settings: type[ServiceSettings], **arguments: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(settings, **arguments)
    return caught.value.problems


# ── sources ──────────────────────────────────────────────────────────────────────────────────────


def test_each_source_gives_way_to_the_one_above_it(
    monkeypatch: pytest.MonkeyPatch, secrets_dir: Path
) -> None:
    """Defaults, then `.env`, then files, then variables, then arguments."""
    assert Settings().region == "none"
    Path(".env").write_text("REGION=dotenv\n")
    assert Settings().region == "dotenv"
    (secrets_dir / "region").write_text("file\n")
    assert Settings().region == "file"
    monkeypatch.setenv("REGION", "variable")
    assert Settings().region == "variable"
    assert Settings(region="argument").region == "argument"


@pytest.mark.parametrize("environment", ["test", "production"])
def test_dotenv_is_for_development_only(monkeypatch: pytest.MonkeyPatch, environment: str) -> None:
    """A file that was left in an image changes nothing in production."""
    Path(".env").write_text("REGION=dotenv\n")
    assert load(Settings, environment=environment).region == "none"
    monkeypatch.setenv("ENVIRONMENT", environment)
    assert Settings().region == "none"
    assert Settings(environment="development").region == "dotenv"


def test_dotenv_cannot_leave_development() -> None:
    """It would stop being read by its own word."""
    Path(".env").write_text("ENVIRONMENT=production\n")
    assert problems_of(Settings) == (
        "ENVIRONMENT: cannot be set by .env, which only development reads; set the variable itself",
    )


def test_dotenv_may_say_development_and_hold_what_is_not_ours() -> None:
    """Compose reads the same file."""
    Path(".env").write_text("ENVIRONMENT=development\nCOMPOSE_PROJECT_NAME=stack\nREGION=\n")
    assert Settings().region == "none"


def test_a_broken_dotenv_is_a_problem_in_development_and_nowhere_else() -> None:
    """It is not even opened elsewhere."""
    Path(".env").write_bytes(b"REGION=\xff\n")
    assert problems_of(Settings) == (".env: cannot be read as UTF-8 text",)
    assert Settings(environment="test").region == "none"


def test_another_dotenv_or_none_can_be_named(tmp_path: Path) -> None:
    """For one call."""
    Path(".env").write_text("REGION=dotenv\n")
    (tmp_path / "other").write_text("REGION=other\n")
    assert load(Settings, _env_file=None).region == "none"
    assert load(Settings, _env_file=tmp_path / "other").region == "other"


def test_another_secrets_directory_can_be_named(tmp_path: Path) -> None:
    """For one call."""
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "REGION").write_text("mounted")
    assert load(Settings, _secrets_dir=tmp_path / "mounted").region == "mounted"


def test_the_default_secrets_directory_need_not_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Outside of a container it usually doesn't."""
    monkeypatch.delenv("SECRETS_DIR")
    monkeypatch.setattr("hybridkit.settings._sources.DEFAULT_SECRETS_DIR", str(tmp_path / "absent"))
    assert Settings().region == "none"


def test_a_secrets_directory_that_was_named_must_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise a wrong mount would pass for "no secrets"."""
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "absent"))
    assert problems_of(Settings) == ("SECRETS_DIR: cannot be read as a directory: No such file or directory",)


def test_secret_files_follow_the_links_of_a_kubernetes_volume(secrets_dir: Path) -> None:
    """Kubernetes swaps the directory behind `..data`."""
    (secrets_dir / "..data").mkdir()
    (secrets_dir / "..data" / "region").write_text("linked")
    (secrets_dir / "region").symlink_to(secrets_dir / "..data" / "region")
    assert Settings().region == "linked"


def test_a_secret_file_that_is_no_text_is_named(secrets_dir: Path) -> None:
    """The report has its path, as its content is not shown."""
    (secrets_dir / "region").write_bytes(b"\xff\xfe")
    assert problems_of(Settings) == (
        f"REGION: the file {secrets_dir / 'region'} cannot be read as UTF-8 text",
    )


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, secrets_dir: Path) -> None:
    """Compose passes `${REGION:-}` on as an empty text."""
    monkeypatch.setenv("REGION", "")
    (secrets_dir / "region").write_text("file")
    assert Settings().region == "file"


def test_collections_and_models_come_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a variable, which is a text."""
    monkeypatch.setenv("TAGS", '["a", "b"]')
    monkeypatch.setenv("NAMES", '["c"]')
    monkeypatch.setenv("LIMITS", '{"per_minute": 7}')
    settings = Settings()
    assert (settings.tags, settings.names, settings.limits.per_minute) == (["a", "b"], ("c",), 7)


def test_aliases_and_a_prefix_name_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names the variable as it has to be set."""

    class Prefixed(Settings):
        model_config = SettingsConfigDict(env_prefix="users_")

    monkeypatch.setenv("LABEL", "blue")
    monkeypatch.setenv("TEAM_OWNER", "ada")
    monkeypatch.setenv("USERS_PORT", "9000")
    settings = Prefixed()
    assert (settings.label, settings.owner, settings.port) == ("blue", "ada", 9000)
    monkeypatch.setenv("TEAM_LABEL", "green")
    assert Prefixed().label == "green"
    monkeypatch.setenv("USERS_PORT", "many")
    assert problems_of(Prefixed)[0].startswith("USERS_PORT: ")


def test_a_default_environment_of_a_subclass_decides_about_dotenv() -> None:
    """As the variable would."""

    class Tested(Settings):
        environment: str = "test"  # type: ignore[assignment]

    Path(".env").write_text("REGION=dotenv\n")
    assert Tested().region == "none"


# ── the report ───────────────────────────────────────────────────────────────────────────────────


def test_every_problem_is_in_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an example of what is missing, and the likeness of a misspelt name."""
    monkeypatch.setenv("PORT", "99999")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    monkeypatch.setenv("REDIS_URL", "http://127.0.0.1")
    with pytest.raises(SettingsError) as caught:
        load(ApiSettings, shutdwon_seconds=3, postgres_service_url="data")
    assert str(caught.value) == (
        "ApiSettings has 7 problems:\n"
        "  - SERVICE_NAME: is not set; for example SERVICE_NAME=users_api\n"
        "  - LOG_LEVEL: should be 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'\n"
        "  - PORT: should be less than or equal to 65535\n"
        "  - RABBITMQ_URL: is not set; for example RABBITMQ_URL=amqps://user:password@rabbitmq:5671/\n"
        "  - REDIS_URL: should start with rediss:// or redis:// or rediss+sentinel:// or redis+sentinel://"
        " or rediss+cluster:// or redis+cluster://;"
        " for example REDIS_URL=rediss://:password@redis:6379/0\n"
        "  - POSTGRES_SERVICE_URL: should be a URL like scheme://user:password@host:port/name,"
        " with @ / ? # in the password written as %40 %2F %3F %23\n"
        "  - shutdwon_seconds: is no setting of ApiSettings; did you mean shutdown_seconds?"
    )


def test_one_problem_is_counted_as_one() -> None:
    """The first line is a sentence."""
    with pytest.raises(SettingsError, match=r"^Settings has 1 problem:\n  - PORT: "):
        Settings(port=-1)


def test_the_error_stands_alone() -> None:
    """pydantic's own error would carry every input along."""
    with pytest.raises(SettingsError) as caught:
        Settings(port=-1)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_place_inside_a_collection_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its index."""
    monkeypatch.setenv("TAGS", '["a", 7]')
    assert problems_of(Settings) == ("TAGS[1]: should be a valid string",)


def test_a_text_that_should_be_json_is_one_problem_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hides none of them."""
    monkeypatch.setenv("TAGS", "a,b")
    monkeypatch.setenv("PORT", "x")
    found = problems_of(Settings)
    assert found[0] == 'TAGS: should be JSON, for example ["first", "second"]'
    assert found[1].startswith("PORT: should be a valid integer")


def test_an_unknown_argument_without_a_lookalike_is_only_named() -> None:
    """No guess is better than a wrong one."""
    assert problems_of(Settings, xyzzy=1) == ("xyzzy: is no setting of Settings",)


def test_a_validator_of_the_whole_class_takes_part() -> None:
    """Values that it quotes are masked."""

    class Paired(Settings):
        @model_validator(mode="after")
        def _both(self) -> "Paired":
            raise ValueError(f"{self.region} needs tags")

    assert problems_of(Paired, region="europe") == ("********** needs tags",)


@pytest.mark.parametrize("name", ["Users", "users-api", "users__api", "1users", "users_", "u" * 64])
def test_a_service_name_is_snake_case(name: str) -> None:
    """It becomes part of names at the broker and in logs."""
    assert problems_of(Settings, service_name=name)[0].startswith("SERVICE_NAME: should be snake_case")


@pytest.mark.parametrize("token", ["token", "123456:", ":abc", "123 456:abc", "123456:a/b"])
def test_a_bot_token_has_its_form(token: str) -> None:
    """A wrong one is found at the start, and not by Telegram."""
    urls = {"rabbitmq_url": "amqp://localhost", "redis_url": "redis://localhost"}
    found = problems_of(BotSettings, service_name="bot", bot_token=token, **urls)
    assert found[0].startswith("BOT_TOKEN: should be digits, a colon, and the token itself; for example")


# ── the values ───────────────────────────────────────────────────────────────────────────────────


def test_levels_may_be_written_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is no level."""
    monkeypatch.setenv("LOG_LEVEL", "debug")
    assert Settings().log_level == "DEBUG"
    assert problems_of(Settings, log_level=7)


def test_each_kind_of_process_has_a_port_of_its_own() -> None:
    """All five run on one laptop without a word of configuration."""
    kinds: list[type[ServiceSettings]]
    kinds = [ApiSettings, PostgresSettings, MongoSettings, WorkerSettings, BotSettings]
    ports = [kind.model_fields["port"].default for kind in kinds]
    assert ports == [8000, 8001, 8002, 8003, 8004]


@pytest.mark.parametrize(
    ("ports", "management"),
    [
        ({}, 9000),
        ({"port": 8002}, 9002),
        ({"port": 0}, 0),
        ({"port": 65000}, 64000),
        ({"port": 8000, "management_port": 9090}, 9090),
        ({"port": 0, "management_port": 0}, 0),
    ],
)
def test_the_management_port_is_beside_the_port(ports: dict[str, Any], management: int) -> None:
    """It is 1000 above, below where there is none, and free where the port is, unless it is set."""
    assert Settings(**ports).management_port == management


def test_the_management_port_is_no_public_one() -> None:
    """The number of the port is refused."""
    assert problems_of(Settings, port=8000, management_port=8000) == (
        "MANAGEMENT_PORT: should be another port than PORT, which may be public",
    )


def test_settings_of_every_kind_can_be_given_as_arguments() -> None:
    """Tests need no environment."""
    rabbitmq, redis = SecretUrl("amqp://u:p@a:5672,b/v"), SecretUrl("redis://localhost")
    assert ApiSettings(service_name="api", rabbitmq_url=rabbitmq, redis_url=redis).rabbitmq_url == rabbitmq
    bot = BotSettings(service_name="bot", rabbitmq_url=rabbitmq, redis_url=redis, bot_token=SecretStr("1:a"))
    assert bot.telegram_api_url.get_secret_value() == "https://api.telegram.org"
    database = SecretUrl("postgresql+asyncpg://u:p@localhost/app")
    postgres = PostgresSettings(service_name="db", rabbitmq_url=rabbitmq, database_url=database)
    assert postgres.database_url.get_secret_value() == "postgresql+asyncpg://u:p@localhost/app"
    assert MongoSettings(service_name="db", database_url=SecretUrl("mongodb://localhost/app")).port == 8002


def test_settings_are_frozen_but_can_be_copied() -> None:
    """What was checked at the start stays true."""
    settings = RabbitSettings(service_name="relay", rabbitmq_url=SecretUrl("amqp://localhost"))
    with pytest.raises(AttributeError, match="port cannot be changed"):
        settings.port = 1  # type: ignore[misc]
    assert copy.deepcopy(settings) == copy.copy(settings) == settings


def test_a_subclass_may_keep_private_state() -> None:
    """As any model of pydantic's may."""

    class Counting(Settings):
        _reads: int = 0

    settings = Counting()
    settings._reads += 1
    assert settings._reads == 1


def test_a_source_reads_one_field_as_pydantic_settings_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook stays usable for people who add sources of their own."""

    class Defaulted(Settings):
        @classmethod
        def settings_customise_sources(cls, *arguments: Any, **sources: Any) -> tuple[Any, ...]:
            arguments_source, *others = super().settings_customise_sources(*arguments, **sources)
            field = cls.model_fields["region"]
            assert arguments_source.get_field_value(field, "region") == (None, "", False)
            return arguments_source, *others, lambda: {"region": "vault"}

    assert Defaulted().region == "vault"
    assert Defaulted(region="argument").region == "argument"
