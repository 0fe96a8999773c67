"""A projection in a test, without a worker."""

from hybridkit.clients import PostgresDataClient
from hybridkit.clients._projections._follower import Follower
from hybridkit.clients._projections._runner import log_reader
from hybridkit.streams import Projection


async def catch_up(client: PostgresDataClient, projection: Projection) -> None:
    """Have a projection count all events that are there, as a worker does.

    Args:
        client: a client of the data service, real or fake, that has the stream and the projection's records.
        projection: the projection.

    Raises:
        UnavailableError: an event fails; the message names it and has the error.
    """
    follower = Follower(projection, client, log_reader(client, projection))
    while not follower.is_caught_up:
        await follower.look()
        follower.probe()
