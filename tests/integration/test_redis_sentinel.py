"""A master with two replicas and three sentinels, under writers. `make redis_failover` does it in all ways."""

import pytest

from hybridkit.coordination import check_noeviction, connect_redis, probe_redis, replication_problems
from tests.helpers.redis_failovers import TIMEOUT_SECONDS, Failover
from tests.helpers.redis_topologies import MASTER_NAME, sentinel_set, until_holds


@pytest.mark.real_server
async def test_a_planned_failover_loses_nothing_that_was_confirmed() -> None:
    """The client goes over without a restart, no call is over its deadline, and claims work as before."""
    with sentinel_set() as servers:
        async with connect_redis(servers.url, timeout_seconds=TIMEOUT_SECONDS) as redis:
            await probe_redis(redis)
            await check_noeviction(redis)
            assert await replication_problems(redis) == []
            old = servers.master()
            old.ask("CONFIG", "SET", "min-replicas-to-write", 0)
            assert "min-replicas-to-write 1" in "".join(await replication_problems(redis))
            old.ask("CONFIG", "SET", "min-replicas-to-write", 1)
            failover = Failover(redis, name="planned")
            await failover.run(
                lambda: servers.sentinels[0].ask("SENTINEL", "FAILOVER", MASTER_NAME),
                until_announced=lambda: until_holds(lambda: servers.master_port() != old.port),
            )
            await failover.check()
