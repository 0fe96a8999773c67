"""`hybridkit doctor`: the settings of a service, and the surroundings that they name."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from types import ModuleType
from typing import Annotated, Any, Final

import typer

from hybridkit._cli._checks._finding import Finding, examine
from hybridkit._cli._checks._network import check_network
from hybridkit._cli._checks._rabbitmq import check_rabbitmq
from hybridkit._cli._checks._redis import check_redis
from hybridkit._cli._checks._services import check_collector, check_data_service, check_telegram
from hybridkit._cli._common import (
    JsonOption,
    import_app,
    instances_of,
    one_line,
    print_json,
    run,
)
from hybridkit.adapters._running import authorization_for
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.dev._applications import settings_class_of
from hybridkit.errors import DeclarationError, SettingsError
from hybridkit.messaging import RobustConsumer
from hybridkit.settings import (
    BotSettings,
    DataClientSettings,
    DataServiceSettings,
    MongoSettings,
    PostgresSettings,
    RabbitSettings,
    RedisSettings,
    ServiceSettings,
)

type _Checks = Iterator[Any]

app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("doctor")
def doctor(
    module: Annotated[
        str, typer.Argument(metavar="MODULE", help="The module of the process, as in python -m MODULE.")
    ],
    *,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="How many processes of it run, for counting connections.")
    ] = 1,
    management_url: Annotated[
        str | None,
        typer.Option(
            "--management-url",
            envvar="RABBITMQ_MANAGEMENT_URL",
            metavar="URL",
            help="http://user:password@host:15672. With it policies and bindings are compared.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the settings of a service and everything that they name; change nothing.

    Run it where the service runs, with its environment. Each line is ok, a warning or a problem, with what to change.
    Exit code 1 when there is a problem.
    """
    loaded = import_app(module, param_hint="MODULE")
    try:
        settings_class = settings_class_of(loaded)
    except DeclarationError as error:
        raise typer.BadParameter(str(error), param_hint="MODULE") from None
    try:
        settings = settings_class()
    except SettingsError as error:
        findings: Sequence[Finding] = [_setting_problem(each) for each in error.problems]
    else:
        findings = [*_settings(settings), *run(_surroundings(settings, loaded, replicas, management_url))]
    _show(findings, as_json=as_json)
    raise typer.Exit(1 if any(each.level == "problem" for each in findings) else 0)


def _setting_problem(said: str) -> Finding:
    advice = "set it in the environment, or in a file of SECRETS_DIR"
    return Finding(level="problem", check="settings", detail=said, advice=advice)


def _settings(settings: ServiceSettings) -> Sequence[Finding]:
    """Return whether the settings would do in production too."""
    name = type(settings).__name__
    fine = Finding(level="ok", check="settings", detail=f"{name} for {settings.environment} are complete")
    if settings.environment == "production":
        return [fine]
    try:
        type(settings)(environment="production")
    except SettingsError as error:
        advice = "change it before the deployment"
        return [
            fine,
            *(
                Finding(level="warning", check="settings.production", detail=each, advice=advice)
                for each in error.problems
            ),
        ]
    return [fine, Finding(level="ok", check="settings.production", detail="production would take them too")]


async def _surroundings(
    settings: ServiceSettings, module: ModuleType, replicas: int, management_url: str | None
) -> Sequence[Finding]:
    consumers = list(instances_of(vars(module).values(), RobustConsumer))
    checks = chain(
        _network(settings),
        _servers(settings, consumers, management_url),
        _services(settings),
        _databases(settings, module, replicas),
    )
    return [*chain.from_iterable(await asyncio.gather(*checks))]


def _network(settings: ServiceSettings) -> _Checks:
    urls = {
        name.removesuffix("_url"): value.get_secret_value()
        for name, value in settings
        if name.endswith("_url") and value is not None
    }
    if settings.otel_exporter_otlp_endpoint is not None:
        urls["traces"] = settings.otel_exporter_otlp_endpoint.get_secret_value()
    for name, url in urls.items():
        yield examine(f"{name}.network", check_network(name, url), advice="correct the URL")


def _servers(
    settings: ServiceSettings, consumers: Sequence[RobustConsumer], management_url: str | None
) -> _Checks:
    if isinstance(settings, RedisSettings):
        redis = check_redis(
            settings.redis_url.get_secret_value(), is_production=settings.environment == "production"
        )
        yield examine("redis", redis, advice="start Redis, or correct REDIS_URL")
    if isinstance(settings, RabbitSettings):
        url = settings.rabbitmq_url.get_secret_value()
        rabbitmq = check_rabbitmq(url, consumers, management_url=management_url)
        yield examine("rabbitmq", rabbitmq, advice="start RabbitMQ, or correct RABBITMQ_URL")


def _services(settings: ServiceSettings) -> _Checks:
    if isinstance(settings, DataClientSettings):
        kinds: dict[str, type[PostgresDataClient | MongoDataClient]] = {
            "postgres_service": PostgresDataClient,
            "mongo_service": MongoDataClient,
        }
        for check, kind in kinds.items():
            url = getattr(settings, f"{check}_url")
            if url is None:
                continue
            authorization = authorization_for(settings, callee=getattr(settings, f"{check}_name"))
            client = kind(url.get_secret_value(), service=settings.service_name, authorization=authorization)
            asked = check_data_service(check, client, url.get_secret_value())
            yield examine(check, asked, advice=f"start it, or correct {check.upper()}_URL")
    if isinstance(settings, BotSettings):
        telegram = check_telegram(
            settings.telegram_api_url.get_secret_value(), settings.bot_token.get_secret_value()
        )
        yield examine("telegram", telegram, advice="see whether this machine reaches the Bot API")
    if settings.otel_exporter_otlp_endpoint is not None:
        collector = check_collector(settings.otel_exporter_otlp_endpoint.get_secret_value())
        yield examine("traces", collector, advice="start the collector, or unset OTEL_EXPORTER_OTLP_ENDPOINT")


def _databases(settings: ServiceSettings, module: ModuleType, replicas: int) -> _Checks:
    if not isinstance(settings, DataServiceSettings):
        return
    # Only a data service has these modules' extras.
    from hybridkit._cli._checks._databases import check_mongo, check_postgres, check_schema  # noqa: PLC0415
    from hybridkit._cli._data_services import declarations_in  # noqa: PLC0415

    advice = "start the database, or correct DATABASE_URL"
    untyped: Any = settings
    url = untyped.database_url.get_secret_value()
    if isinstance(settings, PostgresSettings):
        postgres = check_postgres(url, pool_size=settings.database_pool_size, replicas=replicas)
        yield examine("database", postgres, advice=advice)
    elif isinstance(settings, MongoSettings):
        yield examine("database", check_mongo(url), advice=advice)
    for declared in declarations_in(module):
        yield examine("database.schema", check_schema(declared, url, module.__name__), advice=advice)


def _show(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {"level": each.level, "check": each.check, "detail": each.detail, "advice": each.advice}
                for each in findings
            ]
        )
        return
    width = max(len(each.check) for each in findings)
    for each in findings:
        typer.echo(f"{each.level:<8} {each.check:<{width}}  {one_line(each.detail)}")
        if each.advice and each.level != "ok":
            typer.echo(f"{'':<8} {'':<{width}}  → {one_line(each.advice)}")
    counts = Counter(each.level for each in findings)
    typer.echo(", ".join(f"{counts[level]} {level}" for level in ("ok", "warning", "problem")))
