"""The server of `run_api` and the heads of requests, as sent by raw sockets."""

import json

import pytest
from structlog.testing import capture_logs

from hybridkit.observability import metrics
from tests.helpers.raw_http import GET, POST, Served, connection, impatient, served

__all__ = ["connection", "impatient", "served"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (GET, b"X-A: b\r\n" * 8192),
        (GET + b"X-A: ", b"b" * 65536),
        (GET, b"a" * 65536),
        (b"GET /", b"a" * 65536),
        (b"", b"a" * 65536),
        (CHUNKED + b"0\r\n", b"X-A: b\r\n" * 8192),
        (CHUNKED + b"0\r\nX-A: ", b"b" * 65536),
        (CHUNKED + b"1;", b"b" * 65536),
    ],
    ids=["fields", "value", "name", "URL", "method", "trailer", "trailer value", "chunk extension"],
)
async def test_a_head_without_end_takes_no_memory(served: Served, begin: bytes, piece: bytes) -> None:
    """Whichever part of a request does not end, the connection is closed early."""
    async with served.peer() as peer:
        await peer.send(begin)
        assert await peer.pour(piece, up_to_bytes=64 * 2**20) < 16 * 2**20  # the kernel's buffers hold some


async def test_what_never_becomes_a_request_leaves_a_line_and_a_count(served: Served) -> None:
    """Neither has anything that was sent."""
    counted = metrics.http_server_refused.labels(400)
    before = counted._value.get()
    with capture_logs() as lines:
        async with served.peer() as peer:
            await peer.send(b"hunter2 hunter2\r\n\r\n")
            assert (await peer.answer()).status == 400
    [line] = [line for line in lines if line["event"] == "a connection was refused"]
    assert (line["log_level"], line["http.response.status_code"]) == ("info", 400)
    assert "hunter2" not in str(line)
    assert counted._value.get() == before + 1


async def test_a_head_without_end_is_told_so(served: Served) -> None:
    """The client gets a problem with the reason."""
    async with served.peer() as peer:
        await peer.send(GET + b"X-A: " + b"b" * 70_000)
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (431, "REQUEST_HEADER_FIELDS_TOO_LARGE")


@pytest.mark.parametrize(
    "fields",
    [b"X-A: b\r\n" * 100, b"X-A: " + b"b" * 65_530 + b"\r\n"],
    ids=["one field too many", "one byte too many"],
)
async def test_a_complete_head_has_the_same_limits(served: Served, fields: bytes) -> None:
    """A head in one piece is refused from the same size on as one in many."""
    answer = await served.ask(GET + fields + b"\r\n")
    assert (answer.status, answer.problem["code"]) == (431, "REQUEST_HEADER_FIELDS_TOO_LARGE")


async def test_a_large_head_within_the_limits_is_served(served: Served) -> None:
    """48 KiB of cookies and tokens in 99 fields pass, also in small pieces."""
    fields = b"".join(b"X-%d: %b\r\n" % (number, b"b" * 500) for number in range(98))
    head = GET + fields + b"\r\n"
    async with served.peer() as peer:
        for start in range(0, len(head), 5000):
            await peer.send(head[start : start + 5000])
        assert (await peer.answer()).status == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"NO HTTP AT ALL\r\n\r\n",
        b"BREW /health HTTP/1.1\r\nHost: api\r\n\r\n\x00",
        POST + b"transfer-encoding: chunked\r\n\r\nno size\r\n",
        b"GET /health HTTP/1.1\r\nHost : api\r\n\r\n",
    ],
    ids=["no HTTP", "unknown method", "no chunk", "space before the colon"],
)
async def test_what_is_no_http_is_a_problem_or_no_answer(served: Served, request_: bytes) -> None:
    """The connection ends, and nothing but a problem is sent."""
    async with served.peer() as peer:
        await peer.send(request_)
        told = await peer.rest()
    assert told == b"" or (told.startswith(b"HTTP/1.1 4") and b"application/problem+json" in told)


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"], ids=["none", "two"])
async def test_a_request_names_its_host_exactly_once(served: Served, hosts: bytes) -> None:
    """Anything else is a 400 (RFC 9112, section 3.2)."""
    answer = await served.ask(b"GET /health HTTP/1.1\r\n" + hosts + b"\r\n")
    assert (answer.status, answer.problem["status"]) == (400, 400)


async def test_http_1_0_needs_no_host(served: Served) -> None:
    """Health checks of old load balancers have none."""
    assert (await served.ask(b"GET /health HTTP/1.0\r\n\r\n")).status == 200


@pytest.mark.parametrize("target", [b"/%FF", b"/a%C3", b"/health?a=%FF", b"/health?%C0%80=1"])
async def test_a_url_that_is_no_utf_8_is_refused(served: Served, target: bytes) -> None:
    """Two such URLs would be one to the application."""
    answer = await served.ask(b"GET %b HTTP/1.1\r\nHost: api\r\n\r\n" % target)
    assert (answer.status, answer.problem["status"]) == (400, 400)


@pytest.mark.parametrize("target", [b"/%EF%BF%BD", b"/health?a=%E2%82%AC&b=100%"])
async def test_a_url_in_utf_8_is_served(served: Served, target: bytes) -> None:
    """The replacement character of decoders may itself be in a URL."""
    answer = await served.ask(b"GET %b HTTP/1.1\r\nHost: api\r\n\r\n" % target)
    assert answer.status in (200, 404)


UNCLEAR = [
    b"POST /echo HTTP/1.1\r\nHost: api\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.0\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: api\r\n\r\n",
    b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: api\r\n\r\n",
]


@pytest.mark.parametrize(
    "unclear",
    UNCLEAR,
    ids=["length and chunks", "chunks and length", "chunks of 1.0", "another coding", "all", "authority"],
)
async def test_a_head_that_can_be_read_in_two_ways_ends_its_connection(
    served: Served, unclear: bytes
) -> None:
    """What a proxy takes for the next request is not served as one (RFC 9112, section 6.3)."""
    async with served.peer() as peer:
        await peer.send(unclear + GET + b"\r\n")
        told = await peer.rest()
    assert told.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
    assert b"application/problem+json" in told
    assert b"alive" not in told


async def test_a_host_is_named_in_every_version_from_1_1_on(served: Served) -> None:
    """HTTP/1.2 does not bypass the rule."""
    async with served.peer() as peer:
        await peer.send(b"GET /health HTTP/1.2\r\n\r\n")
        assert (await peer.answer()).status == 400


async def test_fields_behind_a_body_are_no_fields_of_the_head(served: Served) -> None:
    """A proxy that removes `X-User-ID` from a head passes trailers (RFC 9110, section 6.5.1)."""
    head = POST.replace(b"/echo", b"/seen") + b"transfer-encoding: chunked\r\n\r\n"
    answer = await served.ask(head + b"3\r\nabc\r\n0\r\nX-User-ID: root\r\nAuthorization: Bearer x\r\n\r\n")
    seen = json.loads(answer.body)
    assert seen["body"] == "abc"
    assert not {"x-user-id", "authorization"} & set(seen["fields"])


@pytest.mark.parametrize("is_split", [False, True], ids=["in one piece", "in two"])
@pytest.mark.parametrize(
    "body",
    [b"content-length: 3\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"],
    ids=["length", "chunks"],
)
async def test_a_wish_for_another_protocol_costs_no_body(
    served: Served, body: bytes, *, is_split: bool
) -> None:
    """With `Upgrade: h2c`, as Java and curl send it, a POST keeps its body."""
    wish = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
    head = POST.replace(b"/echo", b"/seen") + wish
    begin, end, rest = body.partition(b"\r\n\r\n")
    async with served.peer() as peer:
        if is_split:
            await peer.send(head + begin)
            await peer.send(end)
            await peer.send(rest + GET + b"\r\n")
        else:
            await peer.send(head + body + GET + b"\r\n")
        assert json.loads((await peer.answer()).body)["body"] == "abc"
        assert json.loads((await peer.answer()).body) == {"status": "alive"}


async def test_many_wishes_at_once_are_many_requests(served: Served) -> None:
    """A pipeline of requests with `Upgrade` is answered one by one."""
    wish = GET + b"connection: Upgrade\r\nupgrade: h2c\r\n\r\n"
    async with served.peer() as peer:
        await peer.send(wish * 1500)
        for _ in range(1500):
            assert (await peer.answer()).status == 200


async def test_requests_that_come_before_the_answers_wait_unparsed(served: Served) -> None:
    """Thousands of pipelined requests take no memory, and each is answered in order."""
    most = 0
    head = POST.replace(b"/echo", b"/seen")
    requests = [
        head + (b"content-length: %d\r\n\r\n%d" % (len(str(number)), number)) for number in range(1000)
    ]
    async with served.peer() as peer:
        await peer.send(b"".join(requests))
        for number in range(1000):
            assert json.loads((await peer.answer()).body)["body"] == str(number)
            most = max(most, served.most_queued)
    assert most < 250  # what one piece holds


async def test_a_slash_too_many_leads_nowhere(served: Served) -> None:
    """No redirect is made of the `Host` field."""
    answer = await served.ask(b"GET /health/ HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n")
    assert (answer.status, answer.fields.get("location")) == (404, None)
