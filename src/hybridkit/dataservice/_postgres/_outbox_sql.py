"""The relay's statements for PostgreSQL. Its leases are rows of `hk_leases`: one per partition and per live replica."""

from typing import Any, Final

from sqlalchemy import BigInteger, Double, Integer, Text, Uuid, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.elements import TextClause

from hybridkit.dataservice._outbox._protocol import HEARTBEAT_TTL_SECONDS, LEASE_SECONDS
from hybridkit.dataservice._postgres._columns import ORDERING_KEY, PARTITION

_INTEGERS: Final = ARRAY(Integer())
_NUMBERS: Final = ARRAY(BigInteger())
_TEXTS: Final = ARRAY(Text())

_END: Final = f"now() + interval '{LEASE_SECONDS} seconds'"
_READY: Final = "published_at IS NULL AND parked_at IS NULL AND not_before IS NULL"
_LATER: Final = "published_at IS NULL AND parked_at IS NULL AND not_before IS NOT NULL"


CANCELLABLE: Final = f"{_LATER} AND not_before > now()"
"""The condition for rows that no relay looks at yet."""
EMITTED_BY: Final = (
    "starts_with(split_part(convert_from(hk_outbox.body, 'UTF8'), ',\"service\":', 2), {service})"
)
"""The condition for rows of one service, whose `service_member` it takes.

The member stands before the data in every envelope, and quotes in the type before it are escaped: no data can feign it.
"""


MAX_COUNTED: Final = 10_000
"""The largest number of rows with a `not_before` that are counted: there may be one for each of a million sagas."""


def _sql(statement: str, **types: Any) -> TextClause:
    return text(statement).bindparams(*(bindparam(name, type_=type_) for name, type_ in types.items()))


# The first heartbeat doesn't count yet: a replica that dies at each start must not get a share again and again.
HEARTBEAT: Final = _sql(
    f"""
    INSERT INTO hk_leases (name, owner, fence, expires_at)
    VALUES ('relay.replica.' || :owner, :owner, 1, now() + interval '{HEARTBEAT_TTL_SECONDS} seconds')
    ON CONFLICT (name) DO UPDATE SET fence = hk_leases.fence + 1, expires_at = excluded.expires_at
    """,  # noqa: S608 - made of constants # nosec B608
    owner=Text(),
)

COUNT_LEASES: Final = _sql(
    """
    SELECT count(*) FROM hk_leases WHERE name LIKE 'relay.partition.%' AND expires_at <= now()
    UNION ALL
    SELECT (
        SELECT count(*) FROM hk_leases AS its
        WHERE its.name LIKE 'relay.partition.%' AND its.owner = replica.owner AND its.expires_at > now()
    )
    FROM hk_leases AS replica
    WHERE name LIKE 'relay.replica.%' AND expires_at > now() AND fence > 1 AND owner <> :owner
    """,
    owner=Text(),
)
"""The number of free partitions in the first row, then the number that each of the other replicas has."""

RENEW_LEASES: Final = _sql(
    f"""
    UPDATE hk_leases SET expires_at = {_END} WHERE name LIKE 'relay.partition.%' AND owner = :owner
    RETURNING right(name, 2)::integer, fence
    """,  # noqa: S608 - made of constants # nosec B608
    owner=Text(),
)

TAKE_FREE: Final = _sql(
    f"""
    WITH free AS MATERIALIZED (
        SELECT name FROM hk_leases
        WHERE name LIKE 'relay.partition.%' AND expires_at <= now() - make_interval(secs => :free_seconds)
        ORDER BY expires_at LIMIT :room FOR UPDATE SKIP LOCKED
    )
    UPDATE hk_leases SET owner = :owner, fence = fence + 1, expires_at = {_END} WHERE name IN (SELECT name FROM free)
    RETURNING right(name, 2)::integer, fence
    """,  # noqa: S608 - made of constants # nosec B608
    owner=Text(),
    room=Integer(),
    free_seconds=Double(),
)

# Of each partition only the first rows are looked at, by the index on it, however many there are in all.
WAITING: Final = _sql(
    f"""
    WITH ready AS (
        SELECT first.sequence FROM unnest(:partitions) AS part CROSS JOIN LATERAL (
            SELECT sequence FROM hk_outbox
            WHERE {_READY} AND {PARTITION} = part AND {ORDERING_KEY} <> ALL (:without)
            ORDER BY sequence LIMIT :most
        ) AS first
        ORDER BY first.sequence LIMIT :most
    ), later AS (
        SELECT sequence FROM hk_outbox
        WHERE {_LATER} AND not_before <= now() AND {PARTITION} = ANY (:partitions) AND {ORDERING_KEY} <> ALL (:without)
        ORDER BY not_before LIMIT :most
    )
    SELECT sequence, {PARTITION}::integer AS partition, {ORDERING_KEY} AS ordering_key, event_id, event_type, queue,
        request_id, user_id, traceparent, tracestate, body
    FROM hk_outbox WHERE sequence IN (SELECT sequence FROM ready UNION ALL SELECT sequence FROM later)
    ORDER BY sequence
    """,  # noqa: S608 - made of constants # nosec B608
    partitions=_NUMBERS,
    without=_TEXTS,
    most=Integer(),
)

CANCEL: Final = _sql(
    f"""
    DELETE FROM hk_outbox
    WHERE event_id = ANY (:event_ids) AND {CANCELLABLE} AND {EMITTED_BY.format(service=":service")}
    """,  # noqa: S608 - made of constants # nosec B608
    event_ids=ARRAY(Uuid()),
    service=Text(),
)

# The leases stay locked until the commit, so that none is taken over between the look at its fence and the marks.
MARK: Final = _sql(
    """
    WITH held AS MATERIALIZED (
        SELECT mine.partition FROM hk_leases JOIN unnest(:partitions, :fences) AS mine (partition, fence)
            ON hk_leases.name = 'relay.partition.' || to_char(mine.partition, 'FM00')
            AND hk_leases.fence = mine.fence
        FOR SHARE OF hk_leases
    ), done AS (
        UPDATE hk_outbox SET published_at = now()
        FROM unnest(:published, :published_of) AS mine (sequence, partition)
        WHERE hk_outbox.sequence = mine.sequence AND mine.partition IN (SELECT partition FROM held)
    ), aside AS (
        UPDATE hk_outbox SET parked_at = now(), reason = mine.reason
        FROM unnest(:parked, :parked_of, :reasons) AS mine (sequence, partition, reason)
        WHERE hk_outbox.sequence = mine.sequence AND mine.partition IN (SELECT partition FROM held)
    )
    SELECT partition FROM held
    """,
    partitions=_INTEGERS,
    fences=_NUMBERS,
    published=_NUMBERS,
    published_of=_INTEGERS,
    parked=_NUMBERS,
    parked_of=_INTEGERS,
    reasons=_TEXTS,
)

BACKLOG: Final = _sql(
    f"""
    WITH since AS (
        SELECT first.created_at AS moment FROM unnest(:partitions) AS part CROSS JOIN LATERAL (
            SELECT created_at FROM hk_outbox WHERE {_READY} AND {PARTITION} = part ORDER BY sequence LIMIT 1
        ) AS first
        UNION ALL
        SELECT min(not_before) FROM hk_outbox
        WHERE {_LATER} AND not_before <= now() AND {PARTITION} = ANY (:partitions)
    )
    SELECT
        (SELECT count(*) FROM hk_outbox WHERE {_READY} AND {PARTITION} = ANY (:partitions))
        + (
            SELECT count(*) FROM (
                SELECT FROM hk_outbox WHERE {_LATER} AND {PARTITION} = ANY (:partitions) LIMIT {MAX_COUNTED}
            ) AS first
        ) AS waiting,
        (SELECT count(*) FROM hk_outbox WHERE parked_at IS NOT NULL AND {PARTITION} = ANY (:partitions)) AS parked,
        coalesce((SELECT extract(epoch FROM clock_timestamp() - min(moment)) FROM since), 0) AS lag_seconds
    """,  # noqa: S608 - made of constants # nosec B608
    partitions=_NUMBERS,
)
