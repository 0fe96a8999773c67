"""A client of a data service for commands: its address, and who calls, as a service's settings have them."""

import os
from typing import Annotated

import typer

from hybridkit._cli._common import checked_url
from hybridkit.clients import ClientPolicy, PostgresDataClient
from hybridkit.settings import HttpUrl


def _checked_url(value: str) -> str:
    return checked_url(value, HttpUrl)


ServiceUrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="POSTGRES_SERVICE_URL",
        callback=_checked_url,
        metavar="URL",
        help="http://db_postgres_service:8001: the data service.",
    ),
]
CallerOption = Annotated[
    str,
    typer.Option(
        "--service",
        envvar="SERVICE_NAME",
        help="The name of the calling service, whose grant is used. Its SERVICE_TOKEN_KEY is read from the"
        " environment.",
    ),
]
CalleeOption = Annotated[
    str,
    typer.Option(
        "--service-name",
        envvar="POSTGRES_SERVICE_NAME",
        help="The SERVICE_NAME of the data service, for which the token is made.",
    ),
]
CALLEE = "db_postgres_service"


def data_client(url: str, *, service: str, callee: str) -> PostgresDataClient:
    """Return a client of a data service, which proves who calls where `SERVICE_TOKEN_KEY` is set.

    Args:
        url: the URL of the data service.
        service: the name of the calling service.
        callee: the name of the data service.
    """
    authorization = None
    if key := os.environ.get("SERVICE_TOKEN_KEY"):
        from hybridkit.security import ServiceTokenIssuer  # noqa: PLC0415 - an extra of its own

        authorization = ServiceTokenIssuer(service, key=key, audience=callee).header
    return PostgresDataClient(url, service=service, policy=ClientPolicy.worker(), authorization=authorization)
