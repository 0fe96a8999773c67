"""Rare paths of deliveries: tables that lie about their lengths, a key that exits."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pamqp.commands import Basic

from hybridkit.messaging._amqp._lenient_properties import decode_leniently
from hybridkit.messaging._consuming._keyed_backlog import key_of
from hybridkit.messaging._consuming._settlement import Settlement
from hybridkit.messaging._consuming._stall_detector import StallDetector


def header(fields: bytes) -> bytes:
    """A content header whose only property is a table of these fields."""
    return Basic.Properties.flags["headers"].to_bytes(2, "big") + len(fields).to_bytes(4, "big") + fields


KNOWN = b"\x01at\x01"  # the field a, a true boolean


def test_a_settlement_names_its_queue() -> None:
    """Its repr in a log says whose deliveries it settles."""
    settlement = Settlement("tests.moves", cast("Any", None), stalls=StallDetector(), timeout_seconds=1)
    assert repr(settlement) == "Settlement('tests.moves')"


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(b"\x01b?\x00\x00", id="a type that no table has"),
        pytest.param(b"\x01b", id="no type at all"),
        pytest.param(b"\x01bS\x00\x00\x00\x09text", id="a text shorter than it says"),
    ],
)
def test_headers_are_read_up_to_the_first_that_cannot_be_measured(cut: bytes) -> None:
    """What stands in front of a field whose end can't be found is read, and nothing after it."""
    assert decode_leniently(header(KNOWN + cut)).headers == {"a": True}


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_a_key_that_ends_the_process_is_not_taken_for_an_unreadable_one(
    ending: type[BaseException],
) -> None:
    """While a message's key is read, what ends the process passes."""

    def read() -> None:
        raise ending

    delivery = SimpleNamespace(read=read)
    with pytest.raises(ending):
        key_of(cast("Any", delivery))
