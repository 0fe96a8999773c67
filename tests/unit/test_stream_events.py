"""Events as streams keep them: data without an envelope, and the versions that an idempotency key keeps."""

from typing import Any

import pytest
from pydantic import field_validator

from hybridkit.dataservice._store._kept_outcomes import decode_outcome, encode_outcome, kept_versions
from hybridkit.dataservice._store._operations import Outcome, Write
from hybridkit.errors import MalformedPayloadError, UnknownEventTypeError
from hybridkit.events import Event
from hybridkit.events._envelope import read_data


class Weighed(Event, type="unit.weighed", version=2, key="parcel_id"):
    parcel_id: str
    grams: int

    @field_validator("grams")
    @classmethod
    def _known(cls, grams: int) -> int:
        if grams == 13:
            raise LookupError("nobody expects this")
        return grams


@Weighed.upcast(from_version=1)
def in_grams(data: dict[str, Any]) -> dict[str, Any]:
    return {"parcel_id": data["parcel_id"], "grams": data["kilograms"] * 1000}


@pytest.mark.parametrize(
    ("version", "data", "said"),
    [
        (2, {"parcel_id": "p", "grams": "heavy"}, "does not fit"),
        (2, {"parcel_id": "p", "grams": 13}, "can't be read: LookupError"),
        (1, {"parcel_id": "p"}, "upcaster of 'unit.weighed' from version 1 failed"),
    ],
)
def test_stored_data_of_another_shape_is_one_kind_of_error(
    version: int, data: dict[str, Any], said: str
) -> None:
    """Whatever a declaration's validators or upcasters make of it."""
    with pytest.raises(MalformedPayloadError, match=said):
        read_data("unit.weighed", version, data)


def test_stored_data_is_brought_to_the_newest_version() -> None:
    """And a type that nobody declared is named."""
    assert read_data("unit.weighed", 1, {"parcel_id": "p", "kilograms": 2}) == Weighed(
        parcel_id="p", grams=2000
    )
    with pytest.raises(UnknownEventTypeError):
        read_data("unit.unknown", 1, {})


@pytest.mark.parametrize("minimal", [False, True])
def test_a_key_keeps_the_versions_of_appends(*, minimal: bool) -> None:
    """Beside the records of a transaction, also where an answer needs none of them."""
    write = Write(caller="api", key="k", fingerprint=b"f", minimal=minimal)
    kept = encode_outcome(write, Outcome((), versions=(7, 9)))
    assert kept_versions(kept) == (7, 9)
    assert decode_outcome(kept, write) == Outcome((), replayed=True, versions=(7, 9))
    assert kept_versions(encode_outcome(write, Outcome(()))) == ()
