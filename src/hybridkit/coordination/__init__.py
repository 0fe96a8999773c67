"""Redis, connected so that a dead or frozen one costs a caller fractions of a second.

```python
async with connect_redis(url) as redis:
    await check_noeviction(redis)
```
"""

from redis.asyncio import Redis

from hybridkit.coordination._connection import check_noeviction, connect_redis, probe_redis

__all__ = ["Redis", "check_noeviction", "connect_redis", "probe_redis"]
