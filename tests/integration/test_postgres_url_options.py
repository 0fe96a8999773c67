"""The options of a URL on a real PostgreSQL: followed, or refused in words of ours."""

import pytest

from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.errors import SettingsError, UnavailableError


async def shown(url: str, name: str) -> str:
    connection = await connect(url, timeout_seconds=10, command_seconds=10, application_name="ours")
    try:
        return str(await connection.fetchval(f"SHOW {name}"))
    finally:
        await connection.close()


async def test_what_libpq_follows_is_followed(postgres_url: str) -> None:
    """Options of the URL that asyncpg doesn't know work, and win over ours."""
    hoster = "connect_timeout=5&application_name=theirs&sslmode=prefer&target_session_attrs=read-write"
    assert await shown(f"{postgres_url}?{hoster}", "application_name") == "theirs"
    assert await shown(postgres_url, "application_name") == "ours"
    assert (
        await shown(f"{postgres_url}?options=-c%20statement_timeout%3D1234", "statement_timeout") == "1234ms"
    )
    assert (
        await shown(f"{postgres_url}?channel_binding=prefer&gssencmode=disable", "transaction_read_only")
        == "off"
    )


@pytest.mark.parametrize("option", ["pgbouncer=true", "statement_timeout=soon", "connection_limit=1"])
async def test_what_the_server_does_not_know_is_refused_by_name(postgres_url: str, option: str) -> None:
    """The error names the option and not its value."""
    with pytest.raises(SettingsError, match=option.partition("=")[0]):
        await shown(f"{postgres_url}?{option}", "jit")


async def test_tls_that_the_server_does_not_have_is_said_at_once(postgres_url: str) -> None:
    """A server without TLS is a mistake in the settings, and no outage."""
    with pytest.raises(SettingsError, match="sslmode=require asks for TLS, which the server doesn't have"):
        await shown(f"{postgres_url}?sslmode=require", "jit")


async def test_a_server_of_another_role_is_waited_for(postgres_url: str) -> None:
    """A primary where a standby is asked for is unavailable, as it may change."""
    with pytest.raises(UnavailableError, match="target_session_attrs=standby"):
        await shown(f"{postgres_url}?target_session_attrs=standby", "jit")
