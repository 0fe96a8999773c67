"""Settings of an HTTP application that callers outside of our own services may reach."""

import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from hybridkit.settings._secret_url import refused
from hybridkit.settings._service import ServiceSettings

ANY_ORIGIN: Final = "*"
_ORIGIN: Final = re.compile(r"(https?)://([a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_LOCAL: Final = re.compile(r"localhost|.+\.localhost|127(\.[0-9]{1,3}){3}|\[::1\]")


def _network(value: Any) -> IPv4Network | IPv6Network:
    for kind in (IPv4Network, IPv6Network):
        try:
            return kind(value)
        except ValueError:
            continue
    raise refused(
        "should be addresses and networks, such as 10.0.0.0/8; `*` would let every caller choose its address"
    )


type _Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]


class EdgeSettings(ServiceSettings):
    """Settings of an application at the edge: what pages, proxies and strangers may do. `ApiSettings` has them.

    Attributes:
        allow_any_origin: lets production have `*` among `cors_origins`.
        cors_origins: the origins whose pages may call the application from a browser, such as
            `["https://shop.example"]`; none by default. `["*"]` is every page, without credentials.
        cors_credentials: whether these pages' calls may carry cookies and the like.
        trusted_proxies: the addresses and networks of proxies in front, such as `["10.0.0.0/8"]`, whose
            `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
        proxy_hops: in place of addresses, the number of proxies that every request passes; only where nobody reaches
            the port in another way.
        rate_limit: the requests of each caller, over all routes, such as `600/minute;burst=100`; needs Redis. None
            counts those of `rate_limited` routes only.
        request_seconds: the time for a request, unless its caller waits less or `create_app(timeouts=)` says otherwise.
        serve_docs: whether `/openapi.json`, `/docs` and `/redoc` are served; None for outside of production only.
    """

    allow_any_origin: bool = False
    cors_credentials: bool = False
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[_Network, ...] = ()
    proxy_hops: int = Field(default=0, ge=0, le=10)
    rate_limit: str | None = None
    request_seconds: float = Field(default=30.0, gt=0)
    serve_docs: bool | None = None

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        is_production = info.data.get("environment", "production") == "production"
        if ANY_ORIGIN in value:
            if info.data.get("cors_credentials"):
                raise refused(
                    "should name the origins: `*` with CORS_CREDENTIALS would let every page act as its user"
                )
            if is_production and not info.data.get("allow_any_origin"):
                raise refused(
                    "should name the origins, as production refuses `*`; or set ALLOW_ANY_ORIGIN=true if every page"
                    " may read what the application answers without credentials"
                )
        for origin in value:
            found = _ORIGIN.fullmatch(origin)
            if origin != ANY_ORIGIN and found is None:
                raise refused(
                    'should be origins in lower case without a path, such as ["https://shop.example"]'
                )
            is_open = found is not None and found[1] == "http" and not _LOCAL.fullmatch(found[2])
            if is_open and is_production and not info.data.get("allow_plaintext_urls"):
                raise refused(
                    "should be https:// origins, as anybody on the way can change a page of http://"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_proxies(
        cls, value: tuple[IPv4Network | IPv6Network, ...], info: ValidationInfo
    ) -> tuple[IPv4Network | IPv6Network, ...]:
        is_production = info.data.get("environment", "production") == "production"
        if is_production and any(network.prefixlen == 0 for network in value):
            raise refused("should be the proxies' networks: with all addresses, every caller chooses its own")
        return value

    @field_validator("proxy_hops")
    @classmethod
    def _in_place_of_networks(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("trusted_proxies"):
            raise refused("should be left out where TRUSTED_PROXIES names the proxies")
        return value
