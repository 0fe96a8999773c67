"""Translate a URL as libpq reads it to asyncpg's arguments, and asyncpg's refusals to connect to errors.

asyncpg takes every option that it doesn't know for a setting of the server, also `connect_timeout`, which the server
then refuses.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlencode, urlsplit

import asyncpg  # type: ignore[import-untyped] # it ships no types

from hybridkit.errors import HybridkitError, SettingsError, UnavailableError
from hybridkit.settings._url_options import DROPPED, options_of, postgres_problems

_driver: Final = cast("Any", asyncpg)

CONNECT_FAILURES: Final = (
    _driver.PostgresError,
    _driver.InterfaceError,
    _driver.InternalClientError,
    OSError,
)

_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
_OF_DRIVER: Final = frozenset(
    {
        *_FILES,
        *DROPPED,
        "connect_timeout",
        "database",
        "dbname",
        "gsslib",
        "host",
        "krbsrvname",
        "password",
        "port",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "target_session_attrs",
        "user",
    }
)
"""Options that are no settings of the server."""

_SETTING_STATES: Final = ("42704", "22023", "42501", "55P02")
"""No such setting, no such value, not allowed to this user, not allowed at this time."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server to connect to, and the options of the connection.

    Attributes:
        dsn: the URL with the options that asyncpg reads itself.
        options: all options of the URL.
        ssl: a context that trusts the authorities of this system; None to follow the options.
    """

    dsn: str
    options: Mapping[str, str]
    ssl: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str) -> "Target":
        """Read a URL.

        Raises:
            SettingsError: the URL has an option that can't be followed, or names a file that can't be read.
        """
        parts = urlsplit(url.replace("postgresql+asyncpg://", "postgresql://", 1))
        if problems := postgres_problems(parts) + _file_problems(parts):
            raise _unusable(*problems)
        options = dict(options_of(parts))
        own = {name: value for name, value in options.items() if name not in {*DROPPED, "connect_timeout"}}
        context = None
        if options.get("sslrootcert") == "system":
            context = ssl.create_default_context()  # as in libpq, names are verified then
            del own["sslrootcert"]
            own.pop("sslmode", None)
        return cls(parts._replace(query=urlencode(own)).geturl(), options, context)

    def timeout_seconds(self, limit: float) -> float:
        """Return how long opening a connection may take: the shorter of `connect_timeout` and the limit."""
        asked = int(self.options.get("connect_timeout", "0"))
        return min(asked, limit) if asked > 0 else limit

    def settings(self, ours: Mapping[str, str]) -> dict[str, str]:
        """Return our settings of the server without those that the URL has itself."""
        return {name: value for name, value in ours.items() if name not in self.options}

    def connect_error(self, error: Exception) -> HybridkitError | None:
        """Return the error for a connection that was not opened; None if the URL is not to blame."""
        match error:
            case ssl.SSLCertVerificationError():
                return _unusable(
                    f"the server's certificate is not accepted: {error.verify_message}; sslrootcert names the file"
                    " of its authority, or `system` for those that this system trusts"
                )
            case _ if type(error) is ssl.SSLError:
                return _unusable(
                    f"TLS can't be used with this server: {error.reason or 'the files do not fit'}"
                )
            case ConnectionError() if "rejected SSL upgrade" in str(error):
                return _unusable(
                    f"sslmode={self.options.get('sslmode', 'verify-full')} asks for TLS, which the server doesn't"
                    " have: set it up there, or say sslmode=prefer where the network itself is trusted"
                )
            case _driver.ClientConfigurationError():
                return _unusable(str(error), *([error.hint] if error.hint else []))
            case _driver.TargetServerAttributeNotMatched():
                wanted = self.options.get("target_session_attrs", "any")
                return UnavailableError(f"no server of the URL is as target_session_attrs={wanted} wants it")
            case _driver.PostgresError() if error.sqlstate in _SETTING_STATES:
                if names := [name for name in self.options if name not in _OF_DRIVER]:
                    return _unusable(f"the server refuses an option, one of {', '.join(names)}")
                return None
            case _:
                return None


def _file_problems(parts: SplitResult) -> list[str]:
    return [
        f"{name} names a file that can't be read"
        for name, value in options_of(parts)
        if name in _FILES and (name, value) != ("sslrootcert", "system") and not os.access(value, os.R_OK)
    ]


def _unusable(*problems: str) -> SettingsError:
    return SettingsError("the URL of PostgreSQL can't be used", problems=problems)
