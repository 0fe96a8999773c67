"""URLs that may carry a password: they show little of themselves, and only known options are accepted."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, NoReturn, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Secret
from pydantic_core import PydanticCustomError

from hybridkit.settings._url_options import (
    amqp_problems,
    one_host_problems,
    postgres_problems,
    redis_problems,
)

MASK: Final = "**********"


def refused(reason: str) -> PydanticCustomError:
    """Make the error that a check raises: it has the reason and the remedy, never the value."""
    return PydanticCustomError("setting_refused", "{reason}", {"reason": reason})


_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


def split(text: str) -> SplitResult | None:
    """Split a URL into its parts; None for a text whose parts can't be told apart without doubt."""
    try:
        parts = urlsplit(text)
    except ValueError:  # its message may quote the password, so it goes no further
        return None
    hosts = parts.netloc.rpartition("@")[2]
    # A password with an unescaped `/`, `?`, `#` or `@` puts its end, and the `@`, where the host or path should be.
    unambiguous = text.count("@") <= 1 and "@" not in parts.path + parts.query and "#" not in text
    named = all(map(_HOST.fullmatch, hosts.split(","))) if hosts else "host=" in parts.query
    plain = "://" in text and not any(character.isspace() for character in text)
    return parts if unambiguous and named and plain else None


def _check(text: str) -> str:
    if split(text) is None:
        raise refused(
            "should be a URL like scheme://user:password@host:port/name,"
            " with @ / ? # in the password written as %40 %2F %3F %23"
        )
    return text


class SecretUrl(Secret[Annotated[str, AfterValidator(_check)]]):
    """A URL whose `str` and `repr` show scheme, hosts and database only.

    User and password, the query, and the path of an HTTP URL are masked. It is immutable and refuses to be pickled.
    """

    @property
    def scheme(self) -> str:
        """The part before `://`, in lower case."""
        return self.get_secret_value().partition("://")[0].lower()

    def _display(self) -> str:
        parts = split(self.get_secret_value())
        if parts is None:
            return MASK
        _, at, hosts = parts.netloc.rpartition("@")
        path = f"/{MASK}" if parts.scheme in {"http", "https"} and len(parts.path) > 1 else parts.path
        return f"{parts.scheme}://{at and MASK + at}{hosts}{path}{parts.query and '?' + MASK}"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretUrl cannot be pickled: the pickle would carry the password")


def _scheme(*allowed: str) -> AfterValidator:
    def check(url: SecretUrl) -> SecretUrl:
        if url.scheme not in allowed:
            raise refused(f"should start with {' or '.join(f'{scheme}://' for scheme in allowed)}")
        return url

    return AfterValidator(check)


def _without(problems: Callable[[SplitResult], list[str]]) -> AfterValidator:
    def check(url: SecretUrl) -> SecretUrl:
        parts = split(url.get_secret_value())
        if parts is not None and (found := problems(parts)):
            raise refused("; and ".join(found))
        return url

    return AfterValidator(check)


AmqpUrl = Annotated[SecretUrl, _scheme("amqps", "amqp"), _without(amqp_problems)]
RedisUrl = Annotated[
    SecretUrl,
    _scheme("rediss", "redis", "rediss+sentinel", "redis+sentinel", "rediss+cluster", "redis+cluster"),
    _without(redis_problems),
]
HttpUrl = Annotated[SecretUrl, _scheme("https", "http"), _without(one_host_problems)]
PostgresUrl = Annotated[
    SecretUrl, _scheme("postgresql", "postgresql+asyncpg", "postgres"), _without(postgres_problems)
]
MongoUrl = Annotated[SecretUrl, _scheme("mongodb", "mongodb+srv")]
