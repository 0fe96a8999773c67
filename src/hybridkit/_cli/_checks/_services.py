"""Services over HTTP: data services, the Bot API and a collector of traces."""

import asyncio
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from hybridkit._cli._checks._finding import CHECK_SECONDS, Finding, answered, clock
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.clients._transports._http1 import KEEPALIVE_SECONDS
from hybridkit.errors import UnavailableError

_UNAUTHORIZED: Final = (401, 404)
"""The statuses of the Bot API for a token that it doesn't know, and for one that is none."""


async def check_data_service(
    check: str, client: PostgresDataClient | MongoDataClient, url: str
) -> Sequence[Finding]:
    """Ask a data service whether it is ready for this caller, and compare clocks and keep-alive times.

    Args:
        check: the name of the dependency.
        client: a client with the caller's token.
        url: its URL.

    Raises:
        UnavailableError: it is not ready, or refuses the token.
    """
    since = time.monotonic()
    async with client:
        await client.probe()
    found = [answered(check, "it", since=since)]
    headers = await asyncio.to_thread(_headers, url, "/health")
    if (said := headers.get("date")) is not None:
        theirs = parsedate_to_datetime(said).timestamp()
        found.append(clock(f"{check}.clock", theirs, resolution_seconds=1.0))
    idle = headers.get("keep-alive", "").partition("timeout=")[2].partition(",")[0].strip()
    if idle.isdigit() and int(idle) <= KEEPALIVE_SECONDS:
        detail = f"it closes idle connections after {idle} s, and clients keep them for {KEEPALIVE_SECONDS} s"
        advice = f"raise its keep-alive above {KEEPALIVE_SECONDS} s, or requests meet the closing"
        found.append(Finding(level="warning", check=f"{check}.keep_alive", detail=detail, advice=advice))
    return found


async def check_telegram(url: str, token: str) -> Sequence[Finding]:
    """Ask the Bot API who the bot is.

    Args:
        url: the address of the Bot API.
        token: the bot's token, which is never shown.

    Raises:
        UnavailableError: the Bot API answers with an error, or not by HTTP.
    """
    since = time.monotonic()
    status = await asyncio.to_thread(_status, url, f"/bot{token}/getMe")
    if status in _UNAUTHORIZED:
        detail = f"the Bot API refuses the token ({status})"
        advice = "set BOT_TOKEN to the one that @BotFather shows"
        return [Finding(level="problem", check="telegram.token", detail=detail, advice=advice)]
    if status >= 400:
        raise UnavailableError(f"the Bot API answers {status}")
    return [answered("telegram", "the Bot API knows the token and", since=since)]


async def check_collector(url: str) -> Sequence[Finding]:
    """Open a connection to the collector of traces.

    Args:
        url: the value of `OTEL_EXPORTER_OTLP_ENDPOINT`.

    Raises:
        UnavailableError: nothing answers there by HTTP.
    """
    since = time.monotonic()
    await asyncio.to_thread(_status, url, "/v1/traces")
    return [answered("traces", "the collector", since=since)]


def _headers(url: str, path: str) -> dict[str, str]:
    response = _get(url, path)
    return {name.lower(): value for name, value in response.getheaders()}


def _status(url: str, path: str) -> int:
    return _get(url, path).status


def _get(url: str, path: str) -> HTTPResponse:
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=CHECK_SECONDS)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        response = connection.getresponse()
        response.read(65536)
    except (OSError, ValueError) as error:
        # The path may have a token, and so may the error of a malformed one.
        raise UnavailableError(f"{parts.hostname}: {type(error).__name__}") from None
    else:
        return response
    finally:
        connection.close()
