"""Secrets that get into a text are masked in it, wherever the text goes."""

import pytest
from pydantic import SecretBytes, SecretStr

from hybridkit.observability import _redaction
from hybridkit.observability._redaction import masked, masked_line, remember_secrets
from hybridkit.settings import HttpUrl, SecretUrl, ServiceSettings

SECRET = "c4n4ry/Zq8vXw2LmN5t"
M = _redaction.MASK


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test knows no secrets of others' settings."""
    monkeypatch.setattr(_redaction, "_known", set[bytes]())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no way to postgresql://user:hunter2@db/orders", f"no way to postgresql://{M}@db/orders"),
        ("redis://hunter2@cache:6379", f"redis://{M}@cache:6379"),
        ("POST https://api.telegram.org/bot1:AA-b_c/getMe", f"POST https://api.telegram.org/bot{M}/getMe"),
        ("Authorization: Bearer abcdef.ghi-jkl", f"Authorization: {M}"),
        ("{'authorization': 'Basic aHVudGVyMg=='}", f"{{'authorization': '{M}'}}"),
        ('{"authorization":"hunter2","a":1}', f'{{"authorization":"{M}","a":1}}'),
        ('{"token":"eyJhbGciOiJFZERTQSJ9.eyJhIjoxfQ.c2ln-_x","a":1}', f'{{"token":"{M}","a":1}}'),
        ("eyJhbGciOiJub25lIn0.eyJhIjoxfQ. is unsigned", f"{M} is unsigned"),
        ("renewed hkr_0123456789abcdef.AAAA_b-c.DDDD by ann", f"renewed {M} by ann"),
        ("sent BEARER abcdefgh1234", f"sent BEARER {M}"),
        ("Set-Cookie: session=hunter2; Path=/", f"Set-Cookie: {M}"),
        ("[(b'cookie', b'a=1; b=2'), (b'x', b'y')]", f"[(b'cookie', b'{M}'), (b'x', b'y')]"),
        ("GET /reset?page=2&token=hunter2&x=1", f"GET /reset?page=2&token={M}&x=1"),
        ("GET /login?client_secret=hunter2", f"GET /login?client_secret={M}"),
    ],
)
def test_what_is_secret_by_its_form_is_masked(text: str, line: str) -> None:
    """The rest of the text stays, so that it can be understood."""
    assert masked_line(text.encode()).decode() == line
    assert masked(text) == line


@pytest.mark.parametrize(
    "text",
    [
        "user@example.org wrote to /bots/3",
        '{"message":"no cookie","http.request.method":"GET"}',
        "bearer of bad news, authorization is missing",
        "https://host:8000/users?page=2",
        "/orders/7 is 25% off: d\u00e9j\u00e0 vu",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    """A rule that masked words would make the logs useless."""
    assert masked_line(text.encode()).decode() == text


def test_what_goes_to_other_systems_has_no_query() -> None:
    """In a log line of the application's own, a page number may stay."""
    assert masked("got 404 from https://host/users?page=2&q=Ada") == f"got 404 from https://host/users?{M}"
    assert masked("\ud800 alone") == "\\ud800 alone"


def test_the_secrets_of_the_settings_are_masked_in_every_form() -> None:
    """As they are, in JSON, and encoded for a URL."""

    class Settings(ServiceSettings):
        service_name: str = "users_api"
        keys: dict[str, SecretStr]
        more: tuple[SecretBytes, ...]
        partner_url: HttpUrl
        short: SecretStr = SecretStr("postgres")

    remember_secrets(
        Settings(
            keys={"a": SecretStr(f'{SECRET}"1')},
            more=(SecretBytes(f"{SECRET}2".encode()),),
            partner_url=SecretUrl(f"https://{SECRET.replace('/', '%2F')}3@host/?page=1234567890"),
        )
    )
    forms = [f'{SECRET}"1', f'{SECRET}\\"1', f"{SECRET}2", f"{SECRET.replace('/', '%2F')}2", f"{SECRET}3"]
    for form in [*forms, "page=1234567890"]:
        assert masked(f"<{form}>") == f"<{M}>"
    assert masked("the database is postgres") == "the database is postgres"
