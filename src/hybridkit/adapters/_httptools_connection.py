"""A connection whose parser is in C (the extra `fast`): it keeps a field that doesn't end for as long as bytes come."""

from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hybridkit.adapters._connection import Awaited, Connection
from hybridkit.adapters._limits import MAX_HEAD_BYTES, MAX_HEAD_FIELDS

__all__ = ["HttpToolsConnection"]


class HttpToolsConnection(Connection, HttpToolsProtocol):
    """Counts what the parser has taken without having anything whole to show for it."""

    _unparsed_bytes = 0
    _parsed = False

    def data_received(self, data: bytes) -> None:
        self._parsed = False
        super().data_received(data)
        if self._parsed:
            self._unparsed_bytes = 0
            return
        self._unparsed_bytes += len(data)
        fields = cast("list[tuple[bytes, bytes]] | None", self.headers) or ()  # those of a trailer as well
        too_large = self._unparsed_bytes > MAX_HEAD_BYTES or len(fields) > MAX_HEAD_FIELDS
        if too_large and not self.transport.is_closing():
            self.refuse(431, "the head of the request is too large")

    def on_headers_complete(self) -> None:
        self._parsed = True
        self.now_awaits(Awaited.BODY)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._parsed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._parsed = True
        self.now_awaits(Awaited.NOTHING)
        super().on_message_complete()
