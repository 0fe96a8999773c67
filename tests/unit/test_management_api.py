"""Bindings and policies over HTTP: what is asked, and what every wrong answer becomes."""

import base64
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import cast

import orjson
import pytest

from hybridkit.errors import AccessDeniedError, HybridkitError, MisuseError, ResponseError, UnavailableError
from hybridkit.messaging import Binding
from hybridkit.messaging._topology._management import Policies, fetch_virtual_host

QUEUES = [
    {
        "name": "q",
        "policy": "ttl",
        "operator_policy": None,
        "effective_policy_definition": {"message-ttl": 1},
    },
    {"name": "both", "policy": "a", "operator_policy": "b", "effective_policy_definition": {"expires": 2}},
    {"name": "none", "policy": None, "operator_policy": None, "effective_policy_definition": {}},
    {"name": "empty", "policy": "a", "operator_policy": None, "effective_policy_definition": []},
    {"name": "starting"},
]
BINDINGS = [
    {"source": "", "destination": "q", "destination_type": "queue", "routing_key": "q", "arguments": {}},
    {"source": "e", "destination": "q", "destination_type": "queue", "routing_key": "k", "arguments": {}},
    {"source": "e", "destination": "f", "destination_type": "exchange", "routing_key": "#", "arguments": {}},
]


class Management(HTTPServer):
    """A server that answers with one status and the bodies in turn, and notes the requests."""

    def __init__(self, status: int, *bodies: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.bodies = status, list(bodies)
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://me:p%40ss@127.0.0.1:{self.server_port}/prefix/"


type Serve = Callable[..., Management]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = cast("Management", self.server)
        server.asked.append((self.path, self.headers["Authorization"]))
        self.send_response(server.status)
        self.end_headers()
        self.wfile.write(server.bodies.pop(0))

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Management] = []

    def start(status: int, *bodies: bytes) -> Management:
        server = Management(status, *bodies)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


async def test_bindings_and_policies_are_listed(serve: Serve) -> None:
    """Bindings and policies of the virtual host are requested with the user's password, under the URL's path."""
    server = serve(200, orjson.dumps(BINDINGS), orjson.dumps(QUEUES))
    managed = await fetch_virtual_host(server.url, vhost="/")
    assert managed.bindings == {
        Binding(source="e", target="q", key="k"),
        Binding(source="e", target="f", key="#", to_exchange=True),
    }
    assert managed.policies == {
        "q": Policies(names=("ttl",), definition={"message-ttl": 1}),
        "both": Policies(names=("a", "b"), definition={"expires": 2}),
    }
    user = base64.b64encode(b"me:p@ss").decode()
    assert server.asked == [
        ("/prefix/api/bindings/%2F", f"Basic {user}"),
        (
            "/prefix/api/queues/%2F?columns=name,policy,operator_policy,effective_policy_definition",
            f"Basic {user}",
        ),
    ]


@pytest.mark.parametrize(
    ("status", "body", "expected", "said"),
    [
        (401, b"{}", AccessDeniedError, "refuses user 'me'"),
        (403, b"{}", AccessDeniedError, "refuses user 'me'"),
        (404, b'{"error":"Object Not Found"}', ResponseError, "answers 404"),
        (200, b"<html>", ResponseError, "answers 200"),
        (200, b'[{"source":"e"}]', ResponseError, "answers 200"),
        (500, b"[]", ResponseError, "answers 500"),
    ],
)
async def test_another_answer_is_an_error(
    serve: Serve,
    status: int,
    body: bytes,
    expected: type[HybridkitError],
    said: str,
) -> None:
    """A response with another status or other JSON is a typed error without the password."""
    with pytest.raises(expected, match=said) as refused:
        await fetch_virtual_host(serve(status, body).url, vhost="/")
    assert "p@ss" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_answer_is_unavailable(scheme: str) -> None:
    """A port on which nothing listens raises `UnavailableError` with the address."""
    with pytest.raises(UnavailableError, match=r"at 127\.0\.0\.1:1 does not answer"):
        await fetch_virtual_host(f"{scheme}://me:secret@127.0.0.1:1", vhost="/")


@pytest.mark.parametrize(
    "url", ["amqp://me:secret@127.0.0.1", "http://", "127.0.0.1:15672", "http://h:port/"]
)
async def test_a_url_of_another_kind_is_misuse(url: str) -> None:
    """A URL that is not HTTP, or has no host or no number as its port, raises before any request."""
    with pytest.raises(MisuseError, match="should be like http"):
        await fetch_virtual_host(url, vhost="/")
