"""The heads of HTTP/1.1 messages: a request's can't be ended by a value, and a plain answer's means what h11 reads."""

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybridkit.clients._transports._base import Request, headers_of
from hybridkit.clients._transports._heads import PlainHead, encode_head, plain_head


def request_of(method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b"") -> Request:
    return Request(
        method=method,
        url="http://users",
        headers=headers or {},
        body=body,
        timeout_seconds=1,
        connect_timeout_seconds=1,
        max_response_bytes=1,
    )


def encoded(request: Request, *, target: str = "/v1/users?a=b", authority: str = "users:8001") -> bytes:
    return encode_head(request, target=target, authority=authority)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


def test_a_head_has_the_fields_of_its_request() -> None:
    """The request line, the host, the caller's fields and the length stand in this order."""
    head = encoded(request_of("POST", {"accept": "a/b", "x-tab": "a\tb"}, b"abc"))
    assert head == (
        b"POST /v1/users?a=b HTTP/1.1\r\nhost: users:8001\r\nuser-agent: hybridkit\r\naccept: a/b\r\nx-tab: a\tb\r\n"
        b"content-length: 3\r\n\r\n"
    )


def test_a_caller_may_name_its_own_agent() -> None:
    """The field `user-agent` of a request replaces ours."""
    head = encoded(request_of(headers={"user-agent": "mine"}))
    assert head.count(b"user-agent") == 1
    assert b"user-agent: mine\r\n" in head


@pytest.mark.parametrize(
    ("method", "expected"), [("POST", True), ("PUT", True), ("PATCH", True), ("GET", False)]
)
def test_a_request_without_a_body_says_so_where_one_is_usual(method: str, expected: bool) -> None:
    """A POST, PUT or PATCH without a body announces a length of 0, as servers ask for one."""
    assert (b"content-length: 0\r\n" in encoded(request_of(method))) is expected


@pytest.mark.parametrize(
    "headers",
    [
        {"x": "a\r\nb: c"},
        {"x": "a\nb"},
        {"x": "a\0"},
        {"x": "é"},
        {"x y": "a"},
        {"x:": "a"},
        {"": "a"},
        {"x\r\ny": "a"},
        {"Content-Length": "3"},
        {"transfer-encoding": "chunked"},
        {"connection": "close"},
    ],
)
def test_a_field_that_would_end_something_is_refused(headers: dict[str, str]) -> None:
    """A value or name that another reader could take for the end of a field, head or message raises."""
    with pytest.raises(ValueError, match="header"):
        encoded(request_of(headers=headers))


@pytest.mark.parametrize("target", ["/a b", "/a\r\nx: y", "/é", "/a#b", "/\x7f"])
def test_a_target_that_is_not_percent_encoded_is_refused(target: str) -> None:
    """A space, a fragment or anything but printable ASCII in the path raises."""
    with pytest.raises(ValueError, match="percent-encoded"):
        encoded(request_of(), target=target)


def test_a_method_that_is_no_word_is_refused() -> None:
    """A method with a space would be another request line."""
    with pytest.raises(ValueError, match="method"):
        encoded(request_of("GET /x"))


def test_a_host_that_no_field_can_carry_is_refused() -> None:
    """A host that is not ASCII raises."""
    with pytest.raises(ValueError, match="ascii"):
        encoded(request_of(), authority="é")


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_head_is_read() -> None:
    """Status, fields and length of an answer whose length is announced."""
    head = b'HTTP/1.1 201 Created\r\nContent-Length: 12\r\nEtag:  "1-a" \r\nx-empty:'
    assert plain_head(head) == PlainHead(
        201, {"content-length": "12", "etag": '"1-a"', "x-empty": ""}, length=12, keeps_alive=True
    )


def test_a_204_has_no_body() -> None:
    """An answer without content needs no length."""
    assert plain_head(b"HTTP/1.1 204 No Content\r\nx: y") == PlainHead(204, {"x": "y"}, 0, keeps_alive=True)


@pytest.mark.parametrize(
    ("said", "keeps_alive"), [("close", False), ("Keep-Alive", True), ("keep-alive, x", False)]
)
def test_an_answer_says_whether_its_connection_goes_on(said: str, *, keeps_alive: bool) -> None:
    """A connection whose answer says anything but `keep-alive` is not used again."""
    found = plain_head(f"HTTP/1.1 200\r\ncontent-length: 0\r\nconnection: {said}".encode())
    assert found is not None
    assert found.keeps_alive is keeps_alive


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0",
        b"HTTP/1.1 2000 OK\r\ncontent-length: 0",
        b"HTTP/1.1 20x OK\r\ncontent-length: 0",
        b"HTTP/1.1 100 Continue\r\ncontent-length: 0",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 0",
        b"HTTP/1.1 200 OK\r\nx: y",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5",
        b"HTTP/1.1 200 OK\r\ncontent-length: +5",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5",
        b"HTTP/1.1 200 OK\r\ncontent-length: " + b"1" * 21,
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
        b"HTTP/1.1 200 OK\r\ncontent-length : 5",
        b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 5",
        b"HTTP/1.1 200 OK\r\nx: a\nb: c\r\ncontent-length: 5",
        b"HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 5",
        b"HTTP/1.1 200 OK\r\nx: \0\r\ncontent-length: 5",
        b"HTTP/1.1 200 OK\r\nnothing\r\ncontent-length: 5",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 5",
    ],
)
def test_what_needs_an_interpretation_is_not_plain(head: bytes) -> None:
    """A head that two readers could take for two answers is left to h11."""
    assert plain_head(head) is None


PIECES = st.sampled_from(
    [
        b"content-length: 5",
        b"Content-Length:5",
        b"content-length: 05",
        b"content-length: 6",
        b"content-length: 5 5",
        b"transfer-encoding: chunked",
        b"connection: close",
        b"connection: keep-alive",
        b"x: y",
        b"x: \xe9\x85",
        b" x: y",
        b"\tx: y",
        b"x : y",
        b"x:\x0by",
        b": y",
        b"x",
        b"",
    ]
)
STARTS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200",
        b"HTTP/1.1 204 X",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 599 ",
    ]
)


@given(start=STARTS, lines=st.lists(PIECES | st.binary(max_size=12), max_size=5))
@example(start=b"HTTP/1.1 200 OK", lines=[b"content-length: 5", b"x: y\xa0"])
def test_a_plain_head_means_what_h11_reads(start: bytes, lines: list[bytes]) -> None:
    """A head that is taken as plain has the status, fields, body and connection that h11 finds in the same bytes."""
    head = b"\r\n".join([start, *lines])
    found = plain_head(head) if b"\r\n\r\n" not in head else None
    if found is None:
        return
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("host", "")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(head + b"\r\n\r\n" + bytes(found.length))
    answer = reader.next_event()
    assert isinstance(answer, h11.Response)
    assert (answer.status_code, headers_of(answer.headers)) == (found.status, found.headers)
    body = b""
    while isinstance(event := reader.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (len(body), reader.trailing_data[0]) == (found.length, b"")
    assert not found.keeps_alive or reader.their_state is h11.DONE
