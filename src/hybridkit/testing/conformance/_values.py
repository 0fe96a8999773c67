"""Values: every way to write one stores it as it is, or refuses it as the others do."""

# ruff: noqa: S101 - these are tests

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

import pytest

from hybridkit.testing.conformance._resources import THINGS
from hybridkit.testing.conformance._service import Answer, ServiceUnderTest, fresh_id, path_of

__all__ = ["ValuesConformance"]


LISTS: Final[Sequence[tuple[list[Any], list[Any]]]] = (
    (["a"], ["b"]),
    ([1, 2], [3, 4]),
    ([], [[]]),
    ([[1], 2], [None]),
    ([{"a": [1]}], ["x", None]),
)
"""Of two records of one batch."""


@pytest.mark.asyncio
class ValuesConformance:
    """What a field holds, whichever request has put it there."""

    async def test_a_list_is_stored_as_it_is(self, service: ServiceUnderTest) -> None:
        """Its members are no values of their own, and stay with their record."""
        for lists in LISTS:
            async for way, answer, records in _writes(service, [{"marks": given} for given in lists]):
                assert answer.status in (200, 201), (way, answer)
                for record, given in zip(records, lists, strict=False):
                    assert record["marks"] == given, way
                    read = await service.get(path_of(THINGS, record["id"]))
                    assert read.json().get("marks", given) == given, way


async def _writes(
    service: ServiceUnderTest, values: Sequence[Mapping[str, Any]]
) -> AsyncGenerator[tuple[str, Answer, list[Any]]]:
    """Write the values in every way that the service has, two records at once where a request takes many.

    Yields:
        The way's name, what was answered, and the records that came of it.
    """
    first, path, tag = values[0], THINGS.path, {"tag": service.tag}
    full = [{**tag, **value} for value in values]
    old = [str((await service.thing())["id"]) for _ in range(8)]
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
