"""Readiness probes: the shortest exchange of each protocol that proves a server ready, over a plain socket.

They need no driver, and end within their timeout also when the server is frozen.
"""

import secrets
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

LOOPBACK = "127.0.0.1"
_OP_MSG = 2013
_TIMEOUT_SECONDS = 2.0


def free_port() -> int:
    """Return a free loopback port below the ephemeral range.

    A port of that range could be given to a client while its server is down for a restart; a client that reconnects
    could even get its own target as its source port and talk to itself.
    """
    top = 32768
    with suppress(OSError, ValueError):
        top = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    bottom = min(15000, max(top - 10000, 1024))
    while True:
        port = bottom + secrets.randbelow(max(top - bottom, 1))
        with socket.socket() as attempt, suppress(OSError):
            attempt.bind((LOOPBACK, port))
            _reserve(port)
            return port


def _reserve(port: int) -> None:
    """Keep other processes of ours, until this one ends, from finding the port free before it is used.

    Raises:
        OSError: another process has it reserved.
    """
    if sys.platform == "linux":  # elsewhere there are no names that end with their process
        with socket.socket(socket.AF_UNIX) as reservation:
            reservation.bind(f"\0hybridkit_port_{port}")
            reservation.detach()


def postgres_answers(port: int, *, host: str = LOOPBACK) -> bool:
    """Return whether user postgres gets a session without a password (protocol 3.0, ReadyForQuery)."""
    parameters = b"user\x00postgres\x00database\x00postgres\x00\x00"
    startup = struct.pack("!ii", 8 + len(parameters), 196608) + parameters
    # AuthenticationOk is the first message; ReadyForQuery, `Z` with length 5, ends the greeting.
    return b"Z\x00\x00\x00\x05I" in _exchange(port, startup, until=b"Z\x00\x00\x00\x05I", host=host)


def redis_answers(port: int, *, host: str = LOOPBACK) -> bool:
    """Return whether PING gets PONG; an instance that still loads its data answers -LOADING."""
    return _exchange(port, b"*1\r\n$4\r\nPING\r\n", until=b"\r\n", host=host).startswith(b"+PONG")


def mongo_answers(port: int, *, host: str = LOOPBACK) -> bool:
    """Return whether `ping` gets an answer (OP_MSG)."""
    document = b"\x10ping\x00\x01\x00\x00\x00\x02$db\x00\x06\x00\x00\x00admin\x00\x00"
    body = struct.pack("<IB", 0, 0) + struct.pack("<i", 4 + len(document)) + document
    message = struct.pack("<iiii", 16 + len(body), 1, 0, _OP_MSG) + body
    return b"ok\x00" in _exchange(port, message, until=b"ok\x00", host=host)


def rabbitmq_answers(port: int, *, host: str = LOOPBACK) -> bool:
    """Return whether the protocol header is answered with connection.start (class 10, method 10)."""
    start = struct.pack("!HH", 10, 10)
    return start in _exchange(port, b"AMQP\x00\x00\x09\x01", until=start, host=host)


def epmd_answers(port: int, *, host: str = LOOPBACK) -> bool:
    """Return whether the list of names is given (EPMD protocol, NAMES_REQ); it begins with the port."""
    here = struct.pack("!I", port)
    return _exchange(port, b"\x00\x01n", until=here, host=host).startswith(here)


def _exchange(port: int, request: bytes, *, until: bytes, host: str) -> bytes:
    answer = b""
    with suppress(OSError), socket.create_connection((host, port), _TIMEOUT_SECONDS) as connection:
        connection.sendall(request)
        while until not in answer and (more := connection.recv(4096)):
            answer += more
    return answer
