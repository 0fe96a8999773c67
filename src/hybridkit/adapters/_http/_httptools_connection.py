"""A connection whose parser is in C (the extra `fast`), with the checks that this parser lacks.

The parser buffers an endless header field without a limit, reports trailers as fields of the head, and takes the body
of a request with an `Upgrade` for the other protocol's.
"""

import sys
from typing import Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hybridkit.adapters._http._connection import Connection, ExpectedPart
from hybridkit.adapters._http._limits import MAX_HEAD_BYTES, MAX_HEAD_FIELDS

HEAD_PIECE_BYTES: Final = 4 * 1024
BODY_PIECE_BYTES: Final = 16 * 1024
"""How much is parsed at a time, as the parser can't stop within a piece."""


class HttpToolsConnection(Connection, HttpToolsProtocol):
    """Limits the bytes that the parser takes without completing a part of a request."""

    _unparsed_bytes = 0
    _parsed = False
    _in_head = True
    _trailers = 0
    _data = b""
    _reparse = b""
    """Bytes to be parsed again, without the upgrade."""

    _unparsed = b""
    """Bytes that wait until earlier requests are being answered; parsed, they take thirty times the memory."""

    def data_received(self, data: bytes) -> None:
        if self._unparsed:
            self._unparsed += data
        else:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self.transport.is_closing():
            if self.pipeline:
                self._unparsed = data[at:]
                return
            step = BODY_PIECE_BYTES if self._expected is ExpectedPart.BODY else HEAD_PIECE_BYTES
            self._data, self._reparse = data[at : at + step], b""
            at += step
            self._parse(self._data)
            if self._reparse:
                data, at = self._reparse + data[at:], 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()
        elif self._unparsed:
            waiting, self._unparsed = self._unparsed, b""
            self._feed(waiting)

    def _parse(self, data: bytes) -> None:
        self._parsed = False
        super().data_received(data)
        if self._parsed:
            self._unparsed_bytes = 0
            return
        self._unparsed_bytes += len(data)
        fields = cast("list[tuple[bytes, bytes]] | None", self.headers) or ()
        too_large = self._unparsed_bytes > MAX_HEAD_BYTES or len(fields) + self._trailers > MAX_HEAD_FIELDS
        if too_large and not self.transport.is_closing():
            self.refuse(431, "the head of the request is too large")

    def on_message_begin(self) -> None:
        self._in_head, self._trailers = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Dropped, as proxies don't check trailers: https://www.rfc-editor.org/rfc/rfc9110#section-6.5.1
        if self._in_head:
            super().on_header(name, value)
        else:
            self._trailers += 1

    def on_headers_complete(self) -> None:
        self._parsed = True
        if self._is_upgrade_ignored():
            return
        self._in_head = False
        self.expect(ExpectedPart.BODY)
        super().on_headers_complete()

    def _is_upgrade_ignored(self) -> bool:
        """Return whether the head has to be parsed again without an upgrade that is not supported."""
        wishes = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        return wishes and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Continue in HTTP/1.1 (RFC 9110, section 7.8); called by uvicorn while it handles the parser's end.

        The parser hands over what follows to the other protocol: the body would be lost, or parsed as the next request.
        """
        parsed_bytes: int = cast("httptools.HttpParserUpgrade", sys.exception()).args[0]
        kept = [field for field in self.headers if field[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        head = b"".join([line, *(b"%b: %b\r\n" % field for field in kept), b"\r\n"])
        self._reparse = head + self._data[parsed_bytes:]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def on_body(self, body: bytes) -> None:
        self._parsed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._parsed = True
        if self._in_head:  # the head is going to be parsed again
            return
        self.expect(ExpectedPart.NOTHING)
        super().on_message_complete()
