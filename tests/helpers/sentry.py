"""A small receiver of Sentry's envelopes: https://develop.sentry.dev/sdk/data-model/envelopes/"""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any, Self


class SentryReceiver:
    """A server on a free port, within its `with` block, that keeps what it gets.

    Attributes:
        dsn: the value for `SENTRY_DSN`.
        status: the status of its answers.
        everything: every byte that arrived, uncompressed, headers included.
    """

    def __init__(self) -> None:
        self.status = 200
        self.events: Queue[dict[str, Any]] = Queue()
        self.everything: list[bytes] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name that http.server looks for
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-encoding"] == "gzip":
                    body = gzip.decompress(body)
                receiver.everything += [str(self.headers).encode(), self.path.encode(), body]
                if receiver.status == 200:
                    for event in events_in(body):
                        receiver.events.put(event)
                # Last: whoever waits for the answer finds the event here.
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # its signature
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.dsn = f"http://public_key@127.0.0.1:{self._server.server_address[1]}/42"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def received(self) -> list[dict[str, Any]]:
        """Return the events so far, and forget them."""
        return [self.events.get_nowait() for _ in range(self.events.qsize())]


def events_in(envelope: bytes) -> list[dict[str, Any]]:
    """Return the events of an envelope; other items are skipped."""
    found: list[dict[str, Any]] = []
    rest = envelope.partition(b"\n")[2]
    while rest.strip():
        header_line, _, rest = rest.partition(b"\n")
        header = json.loads(header_line)
        length = header.get("length")
        payload = rest.partition(b"\n")[0] if length is None else rest[:length]
        rest = rest[len(payload) + 1 :]
        if header["type"] == "event":
            found.append(json.loads(payload))
    return found
