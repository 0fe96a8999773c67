"""Run one piece of work once, however often it arrives: a record per key in Redis, with a lease and an outcome.

```python
async with guard.claim("orders:order:42", body) as claim:
    if claim.done:
        return claim.result
    ...
    claim.set_result({"status": "paid"})
```
"""

from hybridkit.idempotency._answers import (
    Acquired,
    Begin,
    Completed,
    Exhausted,
    Failed,
    Finish,
    InProgress,
    Mismatch,
    Outcome,
    RedisDown,
)
from hybridkit.idempotency._attempt import Attempt
from hybridkit.idempotency._claimed import Claimed
from hybridkit.idempotency._guard import MAX_RESULT_BYTES, IdempotencyGuard
from hybridkit.idempotency._keys import claim_key, fingerprint

__all__ = [
    "MAX_RESULT_BYTES",
    "Acquired",
    "Attempt",
    "Begin",
    "Claimed",
    "Completed",
    "Exhausted",
    "Failed",
    "Finish",
    "IdempotencyGuard",
    "InProgress",
    "Mismatch",
    "Outcome",
    "RedisDown",
    "claim_key",
    "fingerprint",
]
