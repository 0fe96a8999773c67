"""Connect to Redis, so that a dead or frozen one costs a caller fractions of a second; locks and rate limits on it.

```python
async with connect_redis(url) as redis:
    await check_noeviction(redis)
```
"""

from redis.asyncio import Redis

from hybridkit.coordination._broadcast import Broadcast, Subscription
from hybridkit.coordination._cache._cache import Cache
from hybridkit.coordination._connection import (
    check_noeviction,
    connect_redis,
    probe_redis,
    replication_problems,
)
from hybridkit.coordination._lock import HeldLock, Lock
from hybridkit.coordination._process_redis import use_redis
from hybridkit.coordination._rate_limiter import LimitDecision, RateLimiter
from hybridkit.coordination._rates import Rate
from hybridkit.coordination._sessions import Session, SessionInfo, Sessions
from hybridkit.coordination._shelf import REDIS_IS_AWAY, Shelf

__all__ = [
    "REDIS_IS_AWAY",
    "Broadcast",
    "Cache",
    "HeldLock",
    "LimitDecision",
    "Lock",
    "Rate",
    "RateLimiter",
    "Redis",
    "Session",
    "SessionInfo",
    "Sessions",
    "Shelf",
    "Subscription",
    "check_noeviction",
    "connect_redis",
    "probe_redis",
    "replication_problems",
    "use_redis",
]
