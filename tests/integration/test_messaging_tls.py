"""TLS on a real RabbitMQ: publishers and consumers work over `amqps://`, and what is wrong with it is said at once."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from hybridkit.dev import Server, free_port
from hybridkit.errors import NotConnectedError
from hybridkit.events import Event
from hybridkit.messaging import BrokerConnection, Receipt, RobustConsumer, RobustPublisher
from hybridkit.testing import FaultProxy
from hybridkit.testing.plugin import _own
from tests.helpers import until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]


class Encrypted(Event, type="tls.encrypted"):
    number: int = 0
    text: str = ""


@dataclass(frozen=True)
class Listener:
    """A broker's TLS port, and the file of the authority that signed its certificate."""

    port: int
    authority: Path

    def url(self, *, authority: Path | None = None, host: str = "127.0.0.1", port: int | None = None) -> str:
        return f"amqps://guest:guest@{host}:{port or self.port}/?cafile={authority or self.authority}"


def listen(server: Server, certificate: trustme.LeafCert) -> int:
    """Open a listener while the broker runs; certificate and key travel in the command, so that it needs no files."""
    port = free_port()
    cert, key = (
        "".join(pem.bytes().decode().splitlines()[1:-1])
        for pem in (certificate.cert_chain_pems[0], certificate.private_key_pem)
    )
    server.ctl(
        "eval",
        f'rabbit_networking:ensure_ssl(), rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, ['
        f'{{cert, base64:decode(<<"{cert}">>)}}, {{key, {{\'ECPrivateKey\', base64:decode(<<"{key}">>)}}}}], 2).',
    )
    return port


@pytest.fixture(scope="module")
def tls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Listener]:
    """Start a TLS listener that the tests of this file share."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    for server in _own(request, "rabbitmq"):
        yield Listener(listen(server, authority.issue_cert("127.0.0.1")), path)


@asynccontextmanager
async def consuming(
    url: str, name: str
) -> AsyncGenerator[tuple[RobustPublisher, RobustConsumer, asyncio.Queue[Encrypted]]]:
    seen = asyncio.Queue[Encrypted]()
    consumer = RobustConsumer(name)

    @consumer.on(Encrypted)
    async def note(event: Encrypted) -> None:
        await seen.put(event)

    async with (
        RobustPublisher(url, service="tests") as publisher,
        BrokerConnection(url, name="tests") as connection,
        consumer.running(connection, publisher=publisher),
    ):
        yield publisher, consumer, seen


async def test_events_travel_encrypted(tls: Listener) -> None:
    """Batches and a message of many frames are published and consumed over TLS."""
    events = [Encrypted(number=n) for n in range(500)] + [Encrypted(text="-" * 2_000_000)]
    async with consuming(tls.url(), "tls.travel") as (publisher, _, seen), asyncio.timeout(60):
        answers = await publisher.publish_many(events)
        received = [await seen.get() for _ in events]
    assert answers == [Receipt(event_id=event.event_id) for event in events]
    assert sorted(each.event_id for each in received) == sorted(each.event_id for each in events)
    assert max(len(each.text) for each in received) == 2_000_000


async def test_a_connection_that_drops_comes_back_encrypted(tls: Listener) -> None:
    """Publisher and consumer reconnect over TLS, and go on."""
    async with FaultProxy("127.0.0.1", tls.port) as proxy:
        url = tls.url(port=proxy.port)
        async with consuming(url, "tls.reset") as (publisher, consumer, seen):
            proxy.reset()
            await until(lambda: not publisher.is_ready and not consumer.is_ready)
            await until(lambda: publisher.is_ready and consumer.is_ready)
            event = Encrypted(number=1)
            await publisher.publish(event)
            assert await asyncio.wait_for(seen.get(), 30) == event


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """Make an authority that has signed nothing."""
    path = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


async def fails_to_start(starting: RobustPublisher | BrokerConnection) -> str:
    """Return the error of a start, which has to come without retries."""
    async with asyncio.timeout(60):
        with pytest.raises(NotConnectedError) as caught:
            await starting.__aenter__()
    return str(caught.value)


async def test_an_unknown_authority_is_said_at_once(tls: Listener, stranger: Path) -> None:
    """A certificate of an unknown authority ends the start, of publisher and connection, without retries."""
    url = tls.url(authority=stranger)
    for starting in (RobustPublisher(url, service="tests"), BrokerConnection(url, name="tests")):
        assert "certificate verify failed" in await fails_to_start(starting)


async def test_a_certificate_for_another_host_is_said_at_once(tls: Listener) -> None:
    """A certificate for another host name ends the start without retries."""
    said = await fails_to_start(BrokerConnection(tls.url(host="localhost"), name="tests"))
    assert "certificate is not valid for 'localhost'" in said


async def test_a_file_that_is_missing_is_said_at_once(tls: Listener, tmp_path: Path) -> None:
    """A missing `cafile` ends the start without retries, and the error names the file."""
    said = await fails_to_start(BrokerConnection(tls.url(authority=tmp_path / "no.pem"), name="tests"))
    assert "No such file" in said
    assert "no.pem" in said


async def test_a_file_without_certificates_is_said_at_once(tls: Listener, tmp_path: Path) -> None:
    """A `cafile` without certificates ends the start without retries."""
    (tmp_path / "empty.pem").write_text("nothing")
    said = await fails_to_start(BrokerConnection(tls.url(authority=tmp_path / "empty.pem"), name="tests"))
    assert "no certificate" in said.lower()


async def test_tls_where_there_is_none_is_said_at_once(tls: Listener, rabbitmq_url: str) -> None:
    """An `amqps://` URL with the port of `amqp://` ends the start without retries."""
    url = tls.url(port=urlsplit(rabbitmq_url).port)
    assert "SSL" in await fails_to_start(BrokerConnection(url, name="tests"))
