"""Settings of an application that issues access tokens."""

from pydantic import Field, SecretStr

from hybridkit.settings._service import ServiceSettings


class TokenSettings(ServiceSettings):
    """Settings of an API that issues access tokens, for `hybridkit.security.AccessTokens`.

    Attributes:
        token_issuer: the `iss` of the tokens; by default the `service_name`. It is the API's public URL where other
            services verify its tokens.
        token_audience: the `aud` of the tokens; by default the issuer.
        token_keys: the private keys as PEM, one after another: the first signs, all verify. Without them, and
            outside of production, a process makes a key of its own.
    """

    token_issuer: str | None = Field(default=None, max_length=255)
    token_audience: str | None = Field(default=None, max_length=255)
    token_keys: SecretStr | None = None
