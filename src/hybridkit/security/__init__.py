"""Prove which service calls: short-lived service tokens, made by the caller and checked by the callee.

```python
issuer = ServiceTokenIssuer("api_service", key=key, audience="db_postgres_service")
client = PostgresDataClient(url, service="api_service", authorization=issuer.header)

verifier = ServiceTokenVerifier({"api_service": key}, audience="db_postgres_service")
caller = verifier.caller(request.headers["authorization"])
```

A token is a JWT (RFC 7519) that names its maker and its audience. It lives for a minute, so that a leaked one is soon
worth nothing, and another service can't use it.
"""

from hybridkit.errors import MissingExtraError

try:
    from hybridkit.security._service_tokens import ServiceTokenIssuer, ServiceTokenVerifier
except ModuleNotFoundError as error:
    if error.name not in {"jwt", "cryptography"}:
        raise
    raise MissingExtraError(__name__, extra="security") from None

__all__ = ["ServiceTokenIssuer", "ServiceTokenVerifier"]
