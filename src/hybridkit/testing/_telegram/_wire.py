"""The forms of calls and answers in HTTP.

https://core.telegram.org/bots/api#making-requests
"""

import json
from collections.abc import Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl

from hybridkit._http_server import HttpResponse
from hybridkit.testing._telegram._records import Call, RefusedError, UploadedFile

if TYPE_CHECKING:
    from email.message import EmailMessage


def json_response(status: int, answer: Mapping[str, Any]) -> HttpResponse:
    """Return an answer in JSON."""
    return HttpResponse(status, [(b"content-type", b"application/json")], json.dumps(answer).encode())


def refusing_response(status: int, reason: str) -> HttpResponse:
    """Return the answer to what is no request."""
    return json_response(status, RefusedError(status, f"Bad Request: {reason}").answer())


def read_call(method: str, *, query: str, content_type: str, body: bytes) -> Call:
    """Read the parameters and files of a call, in any form of the Bot API."""
    params = dict(parse_qsl(query))
    match content_type.partition(";")[0].strip().lower():
        case "application/json":
            params |= json_params(json.loads(body))
        case "multipart/form-data":
            return _read_form(method, params, content_type, body)
        case _:
            params |= parse_qsl(body.decode(), keep_blank_values=True)
    return Call(method, params, {})


def json_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of JSON as text."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }


def _read_form(method: str, params: dict[str, str], content_type: str, body: bytes) -> Call:
    form = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    files: dict[str, UploadedFile] = {}
    for part in cast("list[EmailMessage]", list(form.iter_parts())):
        name = str(part.get_param("name", header="content-disposition"))
        content = cast("bytes", part.get_payload(decode=True))
        file_name = part.get_filename()
        if file_name is None:
            params[name] = content.decode().strip()
        else:
            params[name] = file_name
            files[name] = UploadedFile(file_name, content)
    return Call(method, params, files)
