"""The worker's reactions to events."""

from examples.contracts.analytics import USER_STATS, NewUserStats
from examples.contracts.users import UserCreated
from hybridkit.adapters.dependencies import Mongo
from hybridkit.messaging import RobustConsumer
from hybridkit.observability import get_logger
from hybridkit.retry import Retry

__all__ = ["analytics"]

log = get_logger(__name__)
analytics = RobustConsumer("worker_service.analytics", concurrency=32)


@analytics.on(UserCreated, retry=Retry.exponential(first_seconds=1, cap_seconds=300, attempts=8))
async def start_analytics(event: UserCreated, mongo: Mongo) -> None:
    """Create the user's statistics. A second run changes nothing, as the document has the user's id."""
    stats = NewUserStats(registered=True, registration_source=event.registration_source)
    await mongo.upsert(USER_STATS, event.user_id, stats)
    log.info("analytics started")
