"""Read settings once when a process starts, check them as a whole, and never print them.

```python
class Settings(ApiSettings):
    service_name: str = "api_service"
    upload_limit_bytes: int = 10_000_000

settings = Settings()       # or a SettingsError that lists every problem
```

Sources, the strongest first: arguments, environment variables, mounted secret files, `.env` (in development only), the
defaults. A field is looked up under its name in upper case (`UPLOAD_LIMIT_BYTES`); an empty variable counts as not set.
Nothing is read when this package is imported.

A secret is a `SecretStr` or a `SecretUrl`. Its value comes out through `get_secret_value()` and nowhere else: not from
`repr`, `str`, a dump or a pickle, and not from a `SettingsError`.
"""

from hybridkit.errors import SettingsError
from hybridkit.settings._edge import EdgeSettings
from hybridkit.settings._kinds import (
    ApiSettings,
    BotSettings,
    DataClientSettings,
    DataServiceSettings,
    MongoSettings,
    PostgresSettings,
    RabbitSettings,
    RedisSettings,
    WorkerSettings,
)
from hybridkit.settings._secret_url import AmqpUrl, HttpUrl, MongoUrl, PostgresUrl, RedisUrl, SecretUrl
from hybridkit.settings._service import ServiceSettings
from hybridkit.settings._token_settings import TokenSettings

__all__ = [
    "AmqpUrl",
    "ApiSettings",
    "BotSettings",
    "DataClientSettings",
    "DataServiceSettings",
    "EdgeSettings",
    "HttpUrl",
    "MongoSettings",
    "MongoUrl",
    "PostgresSettings",
    "PostgresUrl",
    "RabbitSettings",
    "RedisSettings",
    "RedisUrl",
    "SecretUrl",
    "ServiceSettings",
    "SettingsError",
    "TokenSettings",
    "WorkerSettings",
]
