"""An OTLP/HTTP collector in this process that keeps what it gets."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """A server on a free port, within its `with` block.

    Attributes:
        url: the value for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    """

    def __init__(self) -> None:
        self.requests: Queue[tuple[str, bytes]] = Queue()
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name that http.server looks for
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()
                requests.put((self.path, body))

            def log_message(self, format: str, *args: object) -> None:  # its signature
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_request(self) -> tuple[dict[str, str], dict[str, Span]]:
        """Return the attributes of the resource, and the spans by name, of the next request."""
        path, body = self.requests.get(timeout=60)
        assert path == "/v1/traces"
        (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
        attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
        return attributes, {found.name: found for scope in resource.scope_spans for found in scope.spans}

    def spans(self) -> list[tuple[str, Span]]:
        """Return all spans so far, each with the name of its service, in the order of their starts."""
        found: list[tuple[str, Span]] = []
        while True:
            try:
                _, body = self.requests.get_nowait()
            except Empty:
                return sorted(found, key=lambda each: each[1].start_time_unix_nano)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                service = attributes["service.name"]
                found += [(service, span) for scope in resource.scope_spans for span in scope.spans]


def text_of(span: Span, name: str) -> str:
    """Return an attribute of a span as a text; empty where the span doesn't have it."""
    return next((pair.value.string_value for pair in span.attributes if pair.key == name), "")
