"""Open an outbox by its URL: which database it is in, and what is missing."""

import sys

import pytest

from hybridkit.dataservice import open_outbox
from hybridkit.errors import InvalidRequestError, MissingExtraError


async def test_a_url_of_another_database_is_refused() -> None:
    """The error names the scheme, and not the password behind it."""
    with pytest.raises(InvalidRequestError, match="'mysql' is neither's scheme") as refused:
        async with open_outbox("mysql://user:s3cret@127.0.0.1/app"):
            pass
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgresql://127.0.0.1/app", "_postgres._driver._pool", "postgres"),
        ("mongodb://127.0.0.1/app", "_mongo._driver._database", "mongo"),
    ],
)
async def test_an_outbox_without_its_driver_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    """A service on one database has the outbox command of the other one installed too."""
    monkeypatch.setitem(sys.modules, f"hybridkit.dataservice.{module}", None)
    with pytest.raises(MissingExtraError) as missing:
        async with open_outbox(url):
            pass
    assert missing.value.extra == extra
