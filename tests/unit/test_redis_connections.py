"""The shared connection on a server that answers as the test says: three ways to read, the same behaviour."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock, Mock

import pytest
import trustme
from redis.exceptions import ConnectionError as RedisConnectionError

from hybridkit.coordination import connect_redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._redis import _handshake, _node, _resp
from hybridkit.coordination._redis._commands import Command, CommandRefusedError, Script
from hybridkit.coordination._redis._handshake import open_connection
from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.coordination._redis._node import NodeConnection
from hybridkit.coordination._redis._open_connection import OpenConnection
from hybridkit.coordination._redis._streamed_connection import StreamedConnection
from hybridkit.errors import MisuseError, OverloadedError, UnavailableError
from tests.helpers import until
from tests.helpers.scripted_redis import ScriptedRedis, bulk, echo_last, until_told

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

SCRIPT = Script("test", "return ARGV[1]")


@pytest.fixture(params=["hiredis", "python", "streamed"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How replies are read: by hiredis, in Python, or by redis-py where its socket can't be taken."""
    chosen: str = request.param
    if chosen == "python":
        monkeypatch.setattr(_resp, "_hiredis", None)
    if chosen == "streamed":
        keep_the_socket(monkeypatch)
    return chosen


def keep_the_socket(monkeypatch: pytest.MonkeyPatch, reason: str = "no attribute '_writer'") -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AttributeError(reason)

    monkeypatch.setattr(_handshake, "OpenConnection", refuse)
    _handshake._warned.add("no attribute '_writer'")


@asynccontextmanager
async def shared(url: str, *, seconds: float = 20.0) -> AsyncGenerator[Multiplexer]:
    """The shared connection; a command waits twice `timeout_seconds`."""
    async with connect_redis(url, timeout_seconds=seconds / 2) as redis:
        multiplexer = multiplexer_of(redis)
        assert isinstance(multiplexer, Multiplexer)
        yield multiplexer


async def test_commands_of_one_turn_travel_in_one_write(kind: str) -> None:
    """Each gets its own reply, in whatever order the callers wait."""
    async with ScriptedRedis().open() as server, shared(server.url) as redis:
        assert await redis.execute("GET", "first") == b"first"
        replies = await asyncio.gather(*(redis.execute("GET", f"key:{number}") for number in range(100)))
        assert replies == [f"key:{number}".encode() for number in range(100)]
        assert server.reads == [1, 100]
        assert server.connections == 1


async def test_a_cancelled_caller_shifts_no_reply(kind: str) -> None:
    """Its command runs, and its reply is dropped."""
    async with ScriptedRedis().open() as server, shared(server.url) as redis:
        futures = [redis.execute("GET", f"key:{number}") for number in range(9)]
        for future in futures[::3]:
            future.cancel()
        replies = await asyncio.gather(*futures, return_exceptions=True)
        assert replies[1::3] == [b"key:1", b"key:4", b"key:7"]
        assert len(server.commands) == 9


async def test_a_script_is_sent_whole_to_a_server_that_does_not_know_it(kind: str) -> None:
    """By its digest first, and again by its digest the next time."""

    def answer(command: list[bytes]) -> bytes:
        return b"-NOSCRIPT No matching script.\r\n" if len(server.commands) < 3 else echo_last(command)

    server = ScriptedRedis(answer)
    async with server.open(), shared(server.url) as redis:
        assert await asyncio.gather(*(redis.run(SCRIPT, ["key"], text) for text in "ab")) == [b"a", b"b"]
        assert await redis.run(SCRIPT, ["key"], "c") == b"c"
    assert [command[0] for command in server.commands] == [*[b"EVALSHA"] * 2, *[b"EVAL"] * 2, b"EVALSHA"]
    assert repr(SCRIPT) == "Script('test')"


async def test_an_error_reply_is_its_callers_only(kind: str) -> None:
    """The connection and the other commands go on."""

    def answer(command: list[bytes]) -> bytes:
        return b"-WRONGTYPE no list\r\n" if command[-1] == b"bad" else b"*2\r\n:1\r\n$-1\r\n"

    async with ScriptedRedis(answer).open() as server, shared(server.url) as redis:
        good, bad, also_good = (redis.execute("LPOP", key) for key in ("good", "bad", "good"))
        assert await good == [1, None]
        with pytest.raises(CommandRefusedError, match="WRONGTYPE"):
            await bad
        assert await also_good == [1, None]
        assert server.connections == 1


async def test_the_error_of_a_caller_that_has_left_is_nobodys(kind: str) -> None:
    """It is dropped as a reply is."""

    def answer(command: list[bytes]) -> bytes:
        return b"-ERR no\r\n" if command[-1] == b"bad" else echo_last(command)

    async with ScriptedRedis(answer).open() as server, shared(server.url) as redis:
        redis.execute("GET", "bad").cancel()
        assert await redis.execute("GET", "good") == b"good"
        assert len(server.commands) == 2


async def test_commands_without_a_reply_are_sent_again_over_the_next_connection(kind: str) -> None:
    """In their order, except those whose callers have left."""
    server = ScriptedRedis(lambda command: echo_last(command) if server.connections > 1 else None)
    async with server.open(), shared(server.url) as redis:
        futures = [redis.execute("GET", f"key:{number}") for number in range(3)]
        await until(lambda: len(server.commands) == 3)
        futures[1].cancel()
        server.cut()
        assert await futures[0] == b"key:0"
        assert await futures[2] == b"key:2"
    assert [command[1] for command in server.commands[3:]] == [b"key:0", b"key:2"]


async def test_a_command_is_not_sent_a_third_time(kind: str) -> None:
    """A command that kills its server does it twice."""
    server = ScriptedRedis(lambda _: server.cut())
    async with server.open(), shared(server.url) as redis:
        with pytest.raises(UnavailableError, match="no reply from Redis"):
            await redis.execute("GET", "deadly")
    assert len(server.commands) == 2


async def test_a_frozen_server_is_given_up_at_the_deadline(kind: str) -> None:
    """Its late answers come to nobody, and the next commands get their own replies over a new connection."""
    async with ScriptedRedis().open() as server, shared(server.url, seconds=0.2) as redis:
        assert await redis.execute("GET", "first") == b"first"
        server.freeze()
        since = asyncio.get_running_loop().time()
        with pytest.raises(UnavailableError):
            await redis.execute("GET", "second")
        assert 0.15 < asyncio.get_running_loop().time() - since < 5
        server.thaw()

        async def third() -> bool:
            try:
                return bool(await redis.execute("GET", "third") == b"third")
            except UnavailableError:
                return False

        await until(third)
        assert server.connections > 1


async def test_a_server_that_is_away_is_told_at_once_after_the_first_deadline(
    kind: str, logs: list[MutableMapping[str, Any]]
) -> None:
    """A caller that wants to wait does; when the server is there again, all work; and the log has one line of each."""
    async with ScriptedRedis().open() as server:
        url, port = server.url, server.port
    async with shared(url, seconds=0.2) as redis:
        assert not redis.is_away
        with pytest.raises(UnavailableError):
            await redis.execute("GET", "key")
        await until(lambda: redis.is_away and logs)
        refused = redis.execute("GET", "key")
        assert refused.done()
        assert isinstance(refused.exception(), UnavailableError)
        assert "away" in repr(redis._node)
        patient = redis.run(SCRIPT, ["key"], "patient", even_if_away=True)
        assert not patient.done()
        again = await asyncio.start_server(server._accept, "127.0.0.1", port)
        async with again:
            await until(lambda: not redis.is_away)
            assert await redis.execute("GET", "key") == b"key"
            again.close()
            server.cut()
        await asyncio.wait([patient])
    assert [line["event"] for line in logs].count("Redis does not answer") == 1
    assert [line["event"] for line in logs].count("Redis answers again") == 1


REFUSAL = b"-READONLY You can't write against a read only replica.\r\n"


async def test_a_server_that_takes_no_writes_is_left(kind: str) -> None:
    """The command, which was not carried out, is sent to the server that is found next."""
    server = ScriptedRedis(lambda command: echo_last(command) if server.connections > 1 else REFUSAL)
    async with server.open(), shared(server.url) as redis:
        assert await redis.execute("SET", "key", "1") == b"1"
    assert server.connections == 2


async def test_a_server_that_refuses_all_fills_no_log(logs: list[MutableMapping[str, Any]]) -> None:
    """Connections that last shorter than a second are lost without a line."""
    async with ScriptedRedis(lambda _: REFUSAL).open() as server, shared(server.url) as redis:
        for _ in range(5):
            with pytest.raises(UnavailableError, match="READONLY"):
                await redis.execute("SET", "key", "1")
    assert not logs


async def test_the_loss_of_a_connection_that_had_lasted_is_logged(
    monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    """And the next is made without a pause."""
    monkeypatch.setattr(_node, "STABLE_SECONDS", 0.0)
    async with ScriptedRedis().open() as server, shared(server.url) as redis:
        await redis.execute("GET", "key")
        server.cut()
        await until(lambda: logs)
        await redis.execute("GET", "key")
    assert logs[0]["event"] == "the connection to Redis is lost"


@pytest.mark.parametrize("limit", ["MAX_COMMANDS", "MAX_BYTES"])
@pytest.mark.parametrize("connected", [False, True])
async def test_more_than_a_server_can_catch_up_with_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch, limit: str, connected: bool
) -> None:
    """By number and by size, before and after connecting; a reply makes room."""
    server = ScriptedRedis()
    async with server.open(), shared(server.url) as redis:
        if connected:
            await redis.execute("GET", "key")
            server.freeze()
        size = len(_resp.encode(("GET", "key")))
        monkeypatch.setattr(_node, limit, 3 if limit == "MAX_COMMANDS" else 3 * size)
        first = [redis.execute("GET", "key"), redis.execute("GET", "key")]
        if connected:
            await until(lambda: len(server.commands) == 3)
        futures = [*first, redis.execute("GET", "key"), redis.execute("GET", "key")]
        with pytest.raises(OverloadedError, match="too many commands"):
            await futures[3]
        await until(lambda: len(server.commands) == 3 + connected)
        server.thaw()
        assert await asyncio.gather(*futures[:3]) == [b"key"] * 3
        assert await redis.execute("GET", "key") == b"key"


async def test_nothing_is_written_while_the_socket_takes_no_data() -> None:
    """A server that does not read leaves the commands where they are counted; all get their replies later."""
    async with ScriptedRedis(lambda command: bulk(command[1])).open() as server, shared(server.url) as redis:
        await redis.execute("SET", "first", "")
        for client in server.clients:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        filling = [redis.execute("SET", f"key:{number}", b"x" * 1_000_000) for number in range(12)]
        node = redis._node
        assert node is not None
        await until(lambda: node._open is not None and not node._open.takes_data)
        held = redis.execute("SET", "held", "")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(node._waiting) == 1
        assert "waiting=1" in repr(node)
        for client in server.clients:
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await held == b"held"
        assert (await asyncio.gather(*filling))[-1] == b"key:11"


@pytest.mark.parametrize(
    ("sent", "reason"), [(b"!what\r\n", "unreadable"), (b":1\r\n:2\r\n", "without a command")]
)
async def test_an_unexpected_reply_ends_the_connection(
    kind: str, monkeypatch: pytest.MonkeyPatch, sent: bytes, reason: str
) -> None:
    """What it says can't be trusted any more."""
    server = ScriptedRedis(lambda command: sent if server.connections == 1 else echo_last(command))
    async with server.open(), shared(server.url) as redis:
        await asyncio.wait([redis.execute("GET", "key")])
        if not (
            kind == "streamed" and reason == "without a command"
        ):  # redis-py reads it with the next command
            await until(lambda: not server.clients or server.connections > 1)
            assert await redis.execute("GET", "key") == b"key"


async def test_a_first_reply_that_is_not_its_own_is_not_accepted(kind: str) -> None:
    """Whoever is late at the start is late for ever."""
    server = ScriptedRedis()
    server._set_up = lambda command: b"$5\r\nother\r\n" if command[0] == b"ECHO" else b"+OK\r\n"  # type: ignore[method-assign]
    async with server.open(), shared(server.url, seconds=0.3) as redis:
        await until_told(redis, "another command")


async def test_closing_fails_what_waits_and_all_that_comes(kind: str) -> None:
    """Commands in flight and later ones get the same error, and closing twice is harmless."""
    async with ScriptedRedis(lambda _: None).open() as server, shared(server.url) as redis:
        flying = redis.execute("GET", "key")
        await until(lambda: server.commands)
        node = redis._node
        assert node is not None
        await redis.close()
        await redis.close()
        with pytest.raises(UnavailableError, match="the client is closed"):
            await flying
        late = Command(b"GET", asyncio.get_running_loop().create_future(), float("inf"))
        node.send(late)
        with pytest.raises(UnavailableError, match="the client is closed"):
            await late.reply
        await until(lambda: not server.clients)


@pytest.mark.parametrize("answers", [-1, 1])
async def test_closing_while_it_connects_ends_the_attempt(kind: str, answers: int) -> None:
    """A server that takes connections and never answers, or answers redis-py and not the first command."""
    server = ScriptedRedis()
    server._set_up = lambda command: b"" if answers < len(server.set_up) else b"+OK\r\n"  # type: ignore[method-assign]
    async with server.open(), shared(server.url) as redis:
        redis.retire("nothing is open yet")
        waiting = redis.execute("GET", "key")
        await until(lambda: len(server.set_up) > answers)
        await redis.close()
        with pytest.raises(UnavailableError, match="the client is closed"):
            await waiting
        await until(lambda: not server.clients)


async def test_a_password_that_is_refused_is_told(kind: str) -> None:
    """The error has the words of Redis, and not the password."""
    server = ScriptedRedis()
    server._set_up = lambda command: b"-WRONGPASS invalid username-password pair\r\n"  # type: ignore[method-assign]
    async with server.open():
        url = server.url.replace("redis://", "redis://user:s3cret-s3cret@")
        async with shared(url, seconds=0.3) as redis:
            await until_told(redis, "invalid username-password")


async def test_a_redis_py_that_keeps_its_socket_costs_a_warning_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    """One line for all connections; the commands work."""
    monkeypatch.setattr(_handshake, "_warned", set())
    keep_the_socket(monkeypatch, "no attribute '_reader'")
    _handshake._warned.clear()
    server = ScriptedRedis()
    async with server.open(), shared(server.url) as redis:
        assert await redis.execute("GET", "one") == b"one"
        server.cut()
        assert await redis.execute("GET", "two") == b"two"
    assert [line["event"] for line in logs] == [
        "this redis-py keeps its socket to itself: commands cost more"
    ]


class Taken:
    """A connection of redis-py whose socket has given bytes before it is taken over."""

    def __init__(self, read: bytes) -> None:
        self._reader = SimpleNamespace(_buffer=read)
        self._writer = SimpleNamespace(transport=Mock(spec=asyncio.Transport))
        self.connect = AsyncMock()


async def test_bytes_that_redis_py_has_read_already_belong_to_nobody() -> None:
    """The connection is not used: it would be one reply ahead for ever."""
    taken = Taken(b":1\r\n")
    transport = taken._writer.transport
    node = NodeConnection(AsyncMock(), name="redis", timeout_seconds=1.0)
    with pytest.raises(UnavailableError, match="another command"):
        await open_connection(cast("AbstractConnection", taken), node)
    transport.abort.assert_called_once()


async def test_a_connection_lost_in_the_turn_of_its_first_reply_is_not_used() -> None:
    """Commands written to it would wait for ever."""
    opened = [OpenConnection(Mock(), Mock(), keep=None), OpenConnection(Mock(), Mock(), keep=None)]
    opened[0].is_open = False
    node = NodeConnection(AsyncMock(side_effect=opened), name="redis", timeout_seconds=60.0)
    node.retire("there is none yet")
    loop = asyncio.get_running_loop()
    node.send(Command(b"GET", loop.create_future(), loop.time() + 60))
    await until(lambda: opened[1].sent)
    assert "sent=1, open=True" in repr(opened[1])
    await node.close()


async def test_a_socket_that_breaks_while_redis_py_writes_ends_the_connection() -> None:
    """Once, whatever else fails after it."""
    connection = Mock()
    connection.send_packed_command = AsyncMock(side_effect=RedisConnectionError("gone"))
    connection.read_response = AsyncMock(side_effect=asyncio.Event().wait)
    connection.disconnect = AsyncMock()
    owner = Mock()
    streamed = StreamedConnection(connection, owner)
    loop = asyncio.get_running_loop()
    streamed.write([Command(b"GET", loop.create_future(), loop.time() + 60)])
    assert repr(streamed) == "StreamedConnection(sent=1)"
    await until(lambda: not streamed.is_open)
    streamed.close("again")
    owner.lost.assert_called_once_with(streamed, "ConnectionError: gone")
    await until(lambda: connection.disconnect.await_count)


async def test_tls_and_certificates_are_redis_pys(kind: str, tmp_path: Path) -> None:
    """A certificate that nobody has signed is refused."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with ScriptedRedis().open(tls=tls) as server:
        async with shared(f"{server.url}?ssl_ca_certs={tmp_path / 'ca.pem'}") as redis:
            replies = await asyncio.gather(*(redis.execute("SET", "key", b"x" * 100_000) for _ in range(20)))
            assert replies == [b"x" * 100_000] * 20
            server.cut()
            assert await redis.execute("GET", "key") == b"key"
        async with shared(server.url, seconds=0.4) as redis:
            await until_told(redis, "certificate|SSL")


async def test_unix_sockets_work_too(kind: str, tmp_path: Path) -> None:
    """The path is the name in logs."""
    async with ScriptedRedis().open(path=str(tmp_path / "redis.sock")) as server, shared(server.url) as redis:
        assert await redis.execute("GET", "key") == b"key"
        assert redis.name == str(tmp_path / "redis.sock")
        assert "redis.sock" in repr(redis)


def test_a_client_goes_from_one_event_loop_to_the_next() -> None:
    """The second loop gets a connection of its own; a command that was in flight when the first ended is forgotten."""
    server = ScriptedRedis(lambda command: None if command[-1] == b"forgotten" else echo_last(command))
    redis = connect_redis("redis://127.0.0.1:1/0")

    async def use(*, forget: bool) -> None:
        async with server.open():
            client = connect_redis(server.url)
            multiplexer._make_connection = multiplexer_of(client)._make_connection
            assert await multiplexer.execute("GET", "key") == b"key"
            if forget:
                multiplexer.execute("GET", "forgotten")
                await until(lambda: len(server.commands) == 2)

    multiplexer = multiplexer_of(redis)
    asyncio.run(use(forget=True))
    asyncio.run(use(forget=False))
    asyncio.run(multiplexer.close())
    assert server.connections == 2


async def test_two_event_loops_at_once_are_a_mistake() -> None:
    """The message says what to do."""
    async with ScriptedRedis().open() as server, shared(server.url) as redis:
        await redis.execute("GET", "key")

        async def use() -> None:
            redis.execute("GET", "key")

        with pytest.raises(MisuseError, match="one event loop"):
            await asyncio.to_thread(asyncio.run, use())


def test_the_objects_say_what_they_are() -> None:
    """Without a password."""
    redis = connect_redis("redis://:s3cret-s3cret@localhost:1/0")
    assert repr(multiplexer_of(redis)) == "Multiplexer('localhost:1', timeout_seconds=0.5)"
