"""Settings of every process."""

import re
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, cast

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from hybridkit.errors import SettingsError
from hybridkit.settings._production import check_for_production
from hybridkit.settings._report import ProblemsError, Reporting
from hybridkit.settings._secret_url import HttpUrl, refused
from hybridkit.settings._sources import Arguments, DotEnv, Environment, SecretFiles

MANAGEMENT_OFFSET: Final = 1000
"""How far `management_port` is above `port` where only that is set; below it where there is no such port."""
MAX_PORT: Final = 65535


def required(example: str) -> Any:
    """Declare a field without a default; the report of problems shows the example.

    Type checkers take it for a default, and so accept `Settings()`, whose values come from elsewhere.
    """
    return Field(examples=[example])


def checked_name(value: str) -> str:
    """Return the name of a service, or refuse it.

    Raises:
        PydanticCustomError: the text is not a name in snake_case.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", value) or len(value) > 63:
        raise refused("should be snake_case, at most 63 characters")
    return value


class ServiceSettings(BaseSettings, Reporting):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Settings of every process. Subclass it, or one of the kinds of process, and add your own fields.

    The arguments `_secrets_dir` and `_env_file` move those sources for one call; the variable `SECRETS_DIR` moves the
    directory for a deployment.

    Attributes:
        environment: production checks secrets and encryption; only development reads `.env`.
        allow_plaintext_urls: lets production talk to other hosts without TLS.
        service_name: snake_case; the `service` of events and of log lines.
        service_version: the version of the application, such as a tag or a commit, in spans and error reports.
        log_level: the least severe level that is logged.
        log_format: by default a form for people in development, and JSON elsewhere.
        host: the address to listen on; a container sets `0.0.0.0`.
        port: the port of the HTTP application; 0 takes a free one.
        management_host: the address to listen on for health, readiness and metrics; a container sets `0.0.0.0`, as its
            orchestrator asks from outside.
        management_port: the port for these, which is never published: by default 1000 above `port`, such as 9000; 0
            takes a free one. It is another port than `port`.
        start_budget_seconds: how long dependencies may take to answer before the start is given up.
        shutdown_seconds: the time from SIGTERM to the end; the orchestrator's grace period should be the same.
        service_commit: the commit of the application, in `hybridkit_build_info`.
        loop_stall_seconds: how long the event loop may be blocked before a warning says what blocks it.
        loop_dead_seconds: how long the event loop may be blocked before the process counts as dead.
        otel_exporter_otlp_endpoint: the base URL of an OTLP/HTTP collector; without one no trace is exported.
        trace_sample_ratio: the part of the traces to export, from 0 to 1. The service in which a trace begins decides
            for all others; a caller from outside can't.
        sentry_dsn: where to report unexpected errors: a Sentry, or what speaks its protocol; without one, nowhere.

    Raises:
        SettingsError: values are missing or refused; the error has every problem at once.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    # These two come first, as the checks of all others read them.
    environment: Literal["development", "test", "production"] = "development"
    allow_plaintext_urls: bool = False
    service_name: str = required("users_api")
    service_version: str = Field(default="", max_length=200, pattern=r"^[A-Za-z0-9._+@-]*$")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: Literal["json", "console"] | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=MAX_PORT)
    management_host: str = "127.0.0.1"
    management_port: int = Field(default=cast("int", None), ge=0, le=MAX_PORT)
    start_budget_seconds: float = Field(default=60.0, gt=0)
    shutdown_seconds: float = Field(default=30.0, gt=0)
    service_commit: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    loop_stall_seconds: float = Field(default=1.0, ge=0.05)
    loop_dead_seconds: float = Field(default=30.0, gt=0)
    otel_exporter_otlp_endpoint: HttpUrl | None = None
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1)
    sentry_dsn: HttpUrl | None = None

    def __init__(self, /, **values: Any) -> None:
        problems: list[str] = []
        # No files yet: `.env` is read once the environment is known.
        values.setdefault("_env_file", ())
        try:
            super().__init__(**values)
        except ProblemsError as found:
            problems = found.problems
        values.clear()
        if problems:
            # Raised outside the handler, and from a frame that holds no value: nothing is chained to it, and a
            # traceback with locals shows none.
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise SettingsError(f"{type(self).__name__} has {count}:", problems=problems)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the sources into their precedence: arguments, environment, secret files, `.env`."""
        del env_settings
        files = cast("DotEnvSettingsSource", dotenv_settings).env_file
        directory = cast("SecretsSettingsSource", file_secret_settings).secrets_dir
        return (
            Arguments(settings_cls, init_settings),
            Environment(settings_cls),
            SecretFiles(settings_cls, directory),
            DotEnv(settings_cls, cls.model_config.get("env_file") if files == () else files),
        )

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("service_name")
    @classmethod
    def _snake_case(cls, value: str) -> str:
        return checked_name(value)

    @field_validator("management_port", mode="before")
    @classmethod
    def _beside_port(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            return value
        port: int = info.data.get("port", 0)
        above = port + MANAGEMENT_OFFSET
        return port and (above if above <= MAX_PORT else port - MANAGEMENT_OFFSET)

    @field_validator("management_port")
    @classmethod
    def _is_own_port(cls, value: int, info: ValidationInfo) -> int:
        if value and value == info.data.get("port"):
            raise refused("should be another port than PORT, which may be public")
        return value

    @field_validator("*")
    @classmethod
    def _fit_for_production(cls, value: Any, info: ValidationInfo) -> Any:
        # An environment that was refused is not among the data: rather too strict now than too late.
        if info.data.get("environment", "production") == "production":
            check_for_production(value, allow_plaintext=bool(info.data.get("allow_plaintext_urls")))
        return value

    if not TYPE_CHECKING:  # pragma: no branch # a checker that saw it would let any attribute be set

        def __setattr__(self, name: str, value: Any) -> None:
            # pydantic's own refusal quotes the value.
            if name in type(self).model_fields:
                raise AttributeError(f"settings are read once: {name} cannot be changed")
            super().__setattr__(name, value)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "settings hold secrets and cannot be pickled; construct them in the process that needs them"
        )
