"""The broker's refusals: AMQP's reply codes with RabbitMQ's texts.

The protocol says which codes end the channel and which the connection:
https://www.rabbitmq.com/resources/specs/amqp-xml-doc0-9-1.pdf (constants).
"""

from typing import Final

_NAMES: Final = {
    311: "CONTENT_TOO_LARGE",
    320: "CONNECTION_FORCED",
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    541: "INTERNAL_ERROR",
}
_ENDS_CHANNEL: Final = frozenset({311, 403, 404, 405, 406})
_SHORT_STRING_BYTES: Final = 255


class RefusalError(Exception):
    """A refusal that is sent as `channel.close` or `connection.close`.

    Attributes:
        code: AMQP's reply code.
        text: the reply text.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = reply_text(code, text)

    @property
    def ends_connection(self) -> bool:
        """Whether the code ends the connection, and not only the channel."""
        return self.code not in _ENDS_CHANNEL


def reply_text(code: int, text: str) -> str:
    """Return the reply text in RabbitMQ's form, cut to the size of a short string."""
    name = _NAMES.get(code)
    whole = f"{name} - {text}" if name and text else text or name or ""
    return whole.encode()[:_SHORT_STRING_BYTES].decode(errors="ignore")
