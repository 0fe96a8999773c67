"""Values: every route that writes one stores it unchanged, or refuses it as the other routes do."""

# ruff: noqa: S101 - these are tests

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

import pytest

from hybridkit.codec import canonical_json
from hybridkit.testing.conformance._resources import THINGS
from hybridkit.testing.conformance._service import Answer, ServiceUnderTest, fresh_id, path_of

LISTS: Final[Sequence[tuple[list[Any], list[Any]]]] = (
    (["a"], ["b"]),
    ([1, 2], [3, 4]),
    ([], [[]]),
    ([[1], 2], [None]),
    ([{"a": [1]}], ["x", None]),
)
"""The lists of two records in one batch."""

REFUSED: Final[Sequence[dict[str, Any]]] = (
    *({"weight": word} for word in ("NaN", "Infinity", "-inf", "1e999", "0.5", True)),
    *(
        {"price": word}
        for word in ("NaN", "-Infinity", "1_000", "\u0661", True, 0.12345678901234567, "1e131072")
    ),
    *({"quantity": other} for other in (True, "1", 1.5, None, [1])),
    *({"due_at": other} for other in (1700000000, "1700000000", "today")),
    *(
        {"owner_id": f"{before}1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc{after}"}
        for before, after in ("{}", ("urn:uuid:", ""))
    ),
    {"name": 1},
    {"marks": [2**64]},
    {"details": {"deep": [-(2**63) - 1]}},
    {"bogus": 1},
    {"parcel": {"bogus": 1}},
    {"parcel": {"pieces": [{"label": "a", "bogus": 1}]}},
    {"parcel": {"cover": {"label": "a", "bogus": None}}},
    {"parcel": {"pieces": [{"label": "a", "weight": "NaN"}]}},
    {"parcel": {"pieces": [{"label": "a", "cost": "Infinity"}]}},
)
"""Undeclared members, and values or JSON types that the field doesn't have."""

EXACT: Final[Sequence[tuple[str, Any, Any]]] = (
    ("price", 123456789012345678901234567890, "123456789012345678901234567890"),
    ("price", 10.5, "10.5"),
    ("price", "1e30", "1" + "0" * 30),
    ("price", "-0.00", "0.00"),
    ("weight", -0.5, -0.5),
    ("weight", 3, 3.0),
    ("marks", [2**63 - 1, -(2**63), 0.1, True], [2**63 - 1, -(2**63), 0.1, True]),
    ("parcel", {"pieces": [{"label": "a", "cost": "1.50"}]},
     {"width": 0, "pieces": [{"label": "a", "weight": 0.0, "cost": "1.50"}], "cover": None}),
)  # fmt: skip
"""A field, the value that is sent, and the value that is read."""


@pytest.mark.asyncio
class ValuesConformance:
    """Tests of a field's values, over every route that writes them."""

    async def test_a_list_is_stored_as_it_is(self, service: ServiceUnderTest) -> None:
        """Its members are no values of their own, and stay with their record."""
        old = await _things(service)
        for lists in LISTS:
            async for way, answer, records in _writes(service, old, [{"marks": given} for given in lists]):
                assert answer.status in (200, 201), (way, answer)
                for record, given in zip(records, lists, strict=False):
                    assert record["marks"] == given, way
                    read = await service.get(path_of(THINGS, record["id"]))
                    assert read.json().get("marks", given) == given, way

    async def test_what_would_be_another_value_is_refused(self, service: ServiceUnderTest) -> None:
        """Nothing is dropped, rounded or taken for something else, and each way refuses it alike."""
        old = await _things(service)
        for wrong in REFUSED:
            async for way, answer, _ in _writes(service, old, [wrong, wrong]):
                assert answer.status == 422, (way, wrong, answer)
                assert answer.problem == (422, "VALIDATION"), (way, wrong)
        changes = {"op": "update", "resource": THINGS.name, "id": old[0]}
        for increment in ({"quantity": True}, {"quantity": "1"}, {"weight": "NaN"}, {"weight": "1e999"}):
            answer = await service.transact({**changes, "increment": increment})
            assert answer.problem == (422, "VALIDATION"), (increment, answer)

    async def test_a_merge_adds_no_undeclared_member(self, service: ServiceUnderTest) -> None:
        """What a merge patch puts into a document is held to its declaration as a whole document is."""
        path = path_of(THINGS, (await service.thing(parcel={"width": 1}))["id"])
        refused = await service.write("PATCH", path, {"parcel": {"width": 2, "bogus": 3}})
        assert refused.problem == (422, "VALIDATION")
        assert refused.pointers == ["/parcel/bogus"]
        changed = await service.write("PATCH", path, {"parcel": {"width": 3, "cover": None}})
        assert changed.json()["parcel"] == {"width": 3, "pieces": [], "cover": None}

    async def test_a_number_is_exact_on_every_path(self, service: ServiceUnderTest) -> None:
        """One value has one text, whichever way it is written and read."""
        old = await _things(service)
        for field, sent, read in EXACT:
            async for way, answer, records in _writes(service, old, [{field: sent}, {field: sent}]):
                assert answer.status in (200, 201), (way, field, answer)
                for record in records:
                    assert canonical_json(record[field]) == canonical_json(read), way
                    again = await service.get(path_of(THINGS, record["id"]))
                    assert canonical_json(again.json().get(field, read)) == canonical_json(read), way

    async def test_requests_that_differ_in_a_long_number_are_two(self, service: ServiceUnderTest) -> None:
        """A key that was used for one is refused for the other."""
        bodies = [{"tag": service.tag, "price": 10**25 + last} for last in (1, 2)]
        answers = [await service.write("POST", THINGS.path, body, key=service.tag) for body in bodies]
        assert answers[0].status == 201
        assert answers[1].problem == (422, "IDEMPOTENCY_KEY_REUSED")


async def _things(service: ServiceUnderTest) -> list[str]:
    """Create the eight records that `_writes` changes, and return their ids."""
    return [str((await service.thing())["id"]) for _ in range(8)]


async def _writes(
    service: ServiceUnderTest, old: Sequence[str], values: Sequence[Mapping[str, Any]]
) -> AsyncGenerator[tuple[str, Answer, list[Any]]]:
    """Write the values by every route of the service, two records at once where a request takes many.

    Args:
        service: the service under test.
        old: the ids of eight records to be changed.
        values: the fields of two records.

    Yields:
        The name of the route, its response, and the records in it.
    """
    first, path, tag = values[0], THINGS.path, {"tag": service.tag}
    full = [{**tag, **value} for value in values]
    dry = {"prefer": "tx=rollback"}
    single: list[tuple[str, str, Mapping[str, Any]]] = [
        ("POST", path, full[0]),
        ("PUT", path_of(THINGS, fresh_id()), full[0]),
        ("PUT", path_of(THINGS, old[0]), full[0]),
        ("PATCH", path_of(THINGS, old[1]), first),
    ]
    for method, target, body in single:
        yield (method, *_with(await service.write(method, target, body)))
        if service.has("transactions"):
            yield (f"{method}, dry", *_with(await service.write(method, target, body, **dry)))
    if not service.has("transactions"):
        return
    fresh = [fresh_id() for _ in range(6)]
    many = {
        "create": (fresh[:2], fresh[2:4], full),
        "update": (old[2:4], old[4:6], values),
        "upsert": ([old[6], fresh[4]], [old[7], fresh[5]], full),
    }
    for kind, (batched, named, data) in many.items():
        items = [{"id": own, "data": one} for own, one in zip(batched, data, strict=True)]
        answer = await service.write("POST", f"{path}:batch_{kind}", {"items": items})
        yield (f"batch_{kind}", *_with(answer, "items"))
        operations = [
            {"op": kind, "resource": THINGS.name, "id": own, "data": one}
            for own, one in zip(named, data, strict=True)
        ]
        yield (f"transact {kind}", *_with(await service.transact(*operations), "results"))


def _with(answer: Answer, member: str = "") -> tuple[Answer, list[Any]]:
    if answer.status >= 400:
        return answer, []
    return answer, list(answer.json()[member]) if member else [answer.json()]
