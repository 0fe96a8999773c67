"""Settings of the edge: which origins and proxies an application may be told to believe."""

from typing import Any

import pytest

from hybridkit.errors import SettingsError
from hybridkit.settings import EdgeSettings


class Settings(EdgeSettings):
    service_name: str = "edge"


PRODUCTION = {"environment": "production"}


def problems_of(**values: Any) -> tuple[str, ...]:
    try:
        Settings(**values)
    except SettingsError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"cors_origins": ["*"], "cors_credentials": True},
            "CORS_ORIGINS: should name the origins: `*` with",
        ),
        ({"cors_origins": ["*"], **PRODUCTION}, "CORS_ORIGINS: should name the origins, as production"),
        ({"cors_origins": ["http://shop.example"], **PRODUCTION}, "CORS_ORIGINS: should be https:// origins"),
        ({"cors_origins": ["https://shop.example/"]}, "CORS_ORIGINS: should be origins in lower case"),
        ({"cors_origins": ["https://Shop.example"]}, "CORS_ORIGINS: should be origins in lower case"),
        ({"cors_origins": ["shop.example"]}, "CORS_ORIGINS: should be origins in lower case"),
        ({"cors_origins": ["null"]}, "CORS_ORIGINS: should be origins in lower case"),
        ({"cors_origins": ["https://*.example"]}, "CORS_ORIGINS: should be origins in lower case"),
        ({"cors_origins": ["https://a.example\nx: y"]}, "CORS_ORIGINS: should be origins in lower case"),
        ({"trusted_proxies": ["*"]}, "TRUSTED_PROXIES[0]: should be addresses and networks"),
        ({"trusted_proxies": ["proxy.example"]}, "TRUSTED_PROXIES[0]: should be addresses and networks"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "TRUSTED_PROXIES[0]: should be addresses and networks"),
        (
            {"trusted_proxies": ["0.0.0.0/0"], **PRODUCTION},
            "TRUSTED_PROXIES: should be the proxies' networks",
        ),
        ({"trusted_proxies": ["::/0"], **PRODUCTION}, "TRUSTED_PROXIES: should be the proxies' networks"),
        ({"trusted_proxies": ["10.0.0.1"], "proxy_hops": 1}, "PROXY_HOPS: should be left out where"),
        ({"proxy_hops": -1}, "PROXY_HOPS: should be greater than or equal to 0"),
        ({"request_seconds": 0}, "REQUEST_SECONDS: should be greater than 0"),
    ],
)
def test_what_would_let_anybody_in_is_refused(values: dict[str, Any], told: str) -> None:
    """Each refusal names the setting, and says what to set."""
    [problem] = problems_of(**values)
    assert problem.startswith(told)


@pytest.mark.parametrize(
    "values",
    [
        {"cors_origins": ["*"]},
        {"cors_origins": ["*"], "allow_any_origin": True, **PRODUCTION},
        {
            "cors_origins": ["https://shop.example", "https://shop.example:8443"],
            "cors_credentials": True,
            **PRODUCTION,
        },
        {
            "cors_origins": ["http://localhost:3000", "http://127.0.0.1:3000", "http://[::1]:3000"],
            **PRODUCTION,
        },
        {"cors_origins": ["http://shop.example"], "allow_plaintext_urls": True, **PRODUCTION},
        {"trusted_proxies": ["10.0.0.0/8", "192.0.2.1", "fd00::/8"], **PRODUCTION},
        {"trusted_proxies": ["0.0.0.0/0"]},
        {"proxy_hops": 2, **PRODUCTION},
    ],
)
def test_what_is_said_plainly_is_taken(values: dict[str, Any]) -> None:
    """Production takes names, networks and numbers."""
    assert problems_of(**values) == ()


def test_the_environment_has_lists_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network may be a single address."""
    monkeypatch.setenv("CORS_ORIGINS", '["https://shop.example"]')
    monkeypatch.setenv("TRUSTED_PROXIES", '["10.0.0.0/8", "192.0.2.1"]')
    settings = Settings()
    assert settings.cors_origins == ("https://shop.example",)
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "192.0.2.1/32"]
