"""Pages by keyset, counts, exports, and reading many by id."""

# ruff: noqa: S101 - these are tests

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, cast

import orjson
import pytest

from hybridkit.contract import MAX_PAGE_BYTES
from hybridkit.testing.conformance._resources import THINGS
from hybridkit.testing.conformance._service import Answer, ServiceUnderTest, fresh_id, path_of

LARGE: Final = 1024 * 1000
"""A number of characters that fits into one body, and four times into a page."""
ORDERS: Final[tuple[tuple[tuple[str, str], ...], ...]] = (
    (),
    (("name", "asc"),),
    (("name", "desc"),),
    (("rank", "asc"),),
    (("rank", "desc"),),
    (("price", "desc"), ("rank", "asc")),
    (("rank", "asc"), ("name", "desc"), ("due_at", "asc")),
    (("rank", "desc"), ("id", "desc")),
    (("details.size", "asc"), ("quantity", "desc")),
    (("due_at", "desc"),),
)


@pytest.mark.asyncio
class PagesConformance:
    """Tests of reading more than one record."""

    async def test_pages_join_to_the_whole(self, service: ServiceUnderTest) -> None:
        """In any order, with ties and with no value, no record is skipped or seen twice."""
        made = await _fill(service)
        for order in ORDERS:
            expected = _sorted(made, order)
            for page_size in (1, 4, 100):
                seen = await _walk(service, page_size, [list(pair) for pair in order])
                assert [item["id"] for item in seen] == [item["id"] for item in expected], (order, page_size)

    async def test_what_is_inserted_meanwhile_disturbs_nothing(self, service: ServiceUnderTest) -> None:
        """Every record that was there at the start is seen once."""
        before = {record["id"] for record in await _fill(service)}

        async def insert() -> None:
            for number in range(20):
                await service.thing(name=f"name {number % 4}", rank=number % 5 or None)

        async with asyncio.TaskGroup() as group:
            group.create_task(insert())
            seen = await _walk(service, 2, [["rank", "desc"], ["name", "asc"]])
        times = Counter(item["id"] for item in seen)
        assert set(times.values()) == {1}
        assert before <= set(times)

    async def test_the_url_form_gives_the_same_pages(self, service: ServiceUnderTest) -> None:
        """Its pages, put together, are one page of the same query in JSON."""
        await _fill(service)
        params = [("tag", f"eq.{service.tag}"), ("order", "rank.desc,name"), ("page_size", "10")]
        first = await service.get(THINGS.path, params)
        second = await service.get(THINGS.path, [*params, ("page_token", first.json()["next_page_token"])])
        tree = {"where": {"eq": ["tag", service.tag]}, "order": [["rank", "desc"], ["name", "asc"]]}
        same = await service.ask("POST", f"{THINGS.path}:query", {**tree, "page_size": 20})
        assert [*first.items, *second.items] == same.items

    async def test_the_last_page_has_no_token(self, service: ServiceUnderTest) -> None:
        """Neither an empty page nor one that is exactly full leads to another one."""
        assert (await service.get(THINGS.path, [("tag", f"eq.{service.tag}")])).json() == {
            "items": [],
            "next_page_token": None,
        }
        await service.thing()
        answer = await service.get(THINGS.path, [("tag", f"eq.{service.tag}"), ("page_size", "1")])
        assert answer.json()["next_page_token"] is None

    async def test_a_token_is_bound_to_its_query(self, service: ServiceUnderTest) -> None:
        """Another filter or order, or a token that was tampered with or made up."""
        await _fill(service)
        mine = ("tag", f"eq.{service.tag}")
        first = await service.get(THINGS.path, [mine, ("page_size", "2")])
        token = first.json()["next_page_token"]
        swapped = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
        for params in (
            [mine, ("rank", "gt.0"), ("page_token", token)],
            [mine, ("order", "rank"), ("page_token", token)],
            [mine, ("page_token", swapped)],
            [mine, ("page_token", "x")],
            [mine, ("page_token", "")],
            [mine, ("page_token", "\u00e9\x00")],
        ):
            answer = await service.get(THINGS.path, params)
            assert answer.problem == (400, "PAGE_TOKEN_MISMATCH"), params
        assert (
            await service.get(THINGS.path, [mine, ("page_size", "3"), ("page_token", token)])
        ).status == 200

    # ── bytes ────────────────────────────────────────────────────────────────────────────────────

    async def test_a_page_ends_before_it_has_too_many_bytes(self, service: ServiceUnderTest) -> None:
        """A page of large records has fewer of them than was asked for, and a token; none is skipped or seen twice."""
        made = [await service.thing(name="a", details={"text": "x" * LARGE, "n": n}) for n in range(6)]
        expected = sorted(record["id"] for record in made)
        where = {"eq": ["tag", service.tag]}
        pages = await _pages(service, where, [["name", "asc"]])
        assert [len(page) for page in pages] == [4, 2]
        assert [item["id"] for page in pages for item in page] == expected
        first = await service.get(THINGS.path, [("tag", f"eq.{service.tag}"), ("page_size", "4")])
        assert (len(first.items), first.json()["next_page_token"] is None) == (4, False)
        exact = await service.get(THINGS.path, [("tag", f"eq.{service.tag}"), ("page_size", "6")])
        assert len(exact.items) == 4
        short = await service.find(select=["id"], page_size=6)
        assert len(short) == 6  # what is not selected takes no room

    async def test_a_record_that_is_too_large_comes_alone(self, service: ServiceUnderTest) -> None:
        """It can be read, whatever it grew to; the others come before and after it."""
        small = await service.thing(name="a")
        large = await service.thing(name="b")
        after = await service.thing(name="c")
        path = path_of(THINGS, large["id"])
        for member in range(5):
            grown = await service.write(
                "PATCH", path, {"details": {str(member): "x" * LARGE}}, prefer="return=minimal"
            )
            assert grown.status == 204
        pages = [
            [item["id"] for item in page]
            for page in await _pages(service, {"eq": ["tag", service.tag]}, [["name", "asc"]])
        ]
        assert pages == [[small["id"]], [large["id"]], [after["id"]]]
        alone = await service.ask("POST", f"{THINGS.path}:batch_get", {"ids": [large["id"], fresh_id()]})
        assert [item and item["id"] for item in alone.items] == [large["id"], None]

    async def test_many_by_id_that_are_too_many_bytes_are_refused(self, service: ServiceUnderTest) -> None:
        """The size of one response is limited, and a record counts each time that it is asked for."""
        made = [await service.thing(details={"text": "x" * LARGE, "n": n}) for n in range(5)]
        ids = [record["id"] for record in made]
        for wanted in (ids, [ids[0], fresh_id()] * 5):
            refused = await service.ask("POST", f"{THINGS.path}:batch_get", {"ids": wanted})
            assert refused.problem == (400, "ANSWER_TOO_LARGE")
            assert refused.pointers == ["/ids"]
        fitting = await service.ask("POST", f"{THINGS.path}:batch_get", {"ids": [fresh_id(), *ids[:4]]})
        assert fitting.items == [None, *made[:4]]

    # ── counts ───────────────────────────────────────────────────────────────────────────────────

    async def test_a_count_comes_when_it_is_preferred(self, service: ServiceUnderTest) -> None:
        """The page is the same beside an exact count, an estimated one, and none."""
        await _fill(service)
        params = [("tag", f"eq.{service.tag}"), ("page_size", "5")]
        plain = await service.get(THINGS.path, params)
        counted = await service.get(THINGS.path, params, prefer="count=exact")
        assert "total_size" not in plain.json()
        assert counted.json()["total_size"] == 23
        assert counted.headers["preference-applied"] == "count=exact"
        assert counted.items == plain.items
        guessed = await service.get(THINGS.path, params, prefer="count=estimated")
        assert guessed.status == 200, guessed
        assert isinstance(guessed.json()["total_size"], int)
        assert guessed.headers["preference-applied"] == "count=estimated"

    # ── exports ──────────────────────────────────────────────────────────────────────────────────

    async def test_an_export_has_every_record_and_an_end(self, service: ServiceUnderTest) -> None:
        """Both forms of the query export the same lines in its order, and the last one has their number."""
        made = await _fill(service)
        params = [("tag", f"eq.{service.tag}"), ("order", "rank.desc")]
        answer = await service.get(THINGS.path, params, accept="application/x-ndjson")
        *lines, end = _lines(answer)
        assert end == {"$end": True, "count": 23}
        assert [line["id"] for line in lines] == [item["id"] for item in _sorted(made, [("rank", "desc")])]
        body = {"where": {"eq": ["tag", service.tag]}, "order": [["rank", "desc"]]}
        posted = await service.ask(
            "POST", f"{THINGS.path}:query", body, headers={"accept": "application/x-ndjson"}
        )
        assert posted.body == answer.body

    async def test_an_export_of_nothing_has_an_end(self, service: ServiceUnderTest) -> None:
        """It can't be taken for an export that was cut at once."""
        answer = await service.get(THINGS.path, [("tag", f"eq.{service.tag}")], accept="application/x-ndjson")
        assert _lines(answer) == [{"$end": True, "count": 0}]

    async def test_a_refused_export_is_a_problem(self, service: ServiceUnderTest) -> None:
        """The problem comes as JSON, although the caller accepts NDJSON only."""
        answer = await service.get(THINGS.path, [("secret", "eq.1")], accept="application/x-ndjson")
        assert answer.problem == (400, "INVALID_QUERY")

    # ── many by id ───────────────────────────────────────────────────────────────────────────────

    async def test_many_come_in_the_order_of_their_ids(self, service: ServiceUnderTest) -> None:
        """A missing record is null, and one that is asked for twice comes twice."""
        first, second = await service.thing(), await service.thing()
        ids = [second["id"], fresh_id(), first["id"], second["id"].upper()]
        answer = await service.ask("POST", f"{THINGS.path}:batch_get", {"ids": ids})
        assert answer.items == [second, None, first, second]
        assert (await service.ask("POST", f"{THINGS.path}:batch_get", {"ids": []})).items == []

    async def test_too_many_are_refused(self, service: ServiceUnderTest) -> None:
        """One request takes at most 1,000 ids."""
        ids = [fresh_id() for _ in range(1001)]
        answer = await service.ask("POST", f"{THINGS.path}:batch_get", {"ids": ids})
        assert answer.problem == (422, "VALIDATION")
        assert (await service.ask("POST", f"{THINGS.path}:batch_get", {"ids": ids[1:]})).items == [
            None
        ] * 1000


def _lines(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer
    assert answer.headers["content-type"].partition(";")[0] == "application/x-ndjson"
    assert answer.body.endswith(b"\n")
    return [orjson.loads(line) for line in answer.body.splitlines()]


def _sorted(records: Sequence[dict[str, Any]], order: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Sort by the contract's order: null comes last, or first in a descending order; ties are ordered by id."""
    ordered = sorted(records, key=lambda record: str(record["id"]))
    for name, direction in reversed(order):
        ordered.sort(key=lambda record: _rank(record, name), reverse=direction == "desc")
        if direction == "desc":  # `reverse` keeps equal ones as they were
            continue
    return ordered


def _rank(record: dict[str, Any], path: str) -> tuple[bool, Any]:
    value: Any = record
    for name in path.split("."):
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return (value is None, 0 if value is None else value)


async def _fill(service: ServiceUnderTest) -> list[dict[str, Any]]:
    """Create records with ties and nulls in every sortable field."""
    operations = [
        {
            "id": fresh_id(),
            "data": {
                "tag": service.tag,
                "name": f"name {number % 4}",
                "rank": None if number % 3 == 0 else number % 5,
                "price": None if number % 4 == 1 else f"{number % 3}.50",
                "quantity": number % 2,
                "due_at": None
                if number % 5 == 2
                else f"2026-01-0{1 + number % 3}T00:00:00.00{1 + number % 2}Z",
                "details": None if number % 6 == 0 else {"size": number % 4},
            },
        }
        for number in range(23)
    ]
    return [await service.thing(id=operation["id"], **operation["data"]) for operation in operations]  # type: ignore[arg-type] # pyright: ignore[reportCallIssue]


async def _pages(service: ServiceUnderTest, where: object, order: object) -> list[list[Any]]:
    pages: list[list[Any]] = []
    token = None
    while token is not None or not pages:
        body = {"where": where, "order": order, "page_token": token}
        page = await service.ask("POST", f"{THINGS.path}:query", body)
        assert len(page.items) <= 1 or len(page.body) < MAX_PAGE_BYTES + 1000
        pages.append(page.items)
        token = page.json()["next_page_token"]
    return pages


async def _walk(service: ServiceUnderTest, page_size: int, order: object) -> list[Any]:
    """Read all pages of the test's things, one after the other."""
    where, seen, token = {"eq": ["tag", service.tag]}, list[Any](), None
    while True:
        body = {"where": where, "order": order, "page_size": page_size, "page_token": token}
        page = await service.ask("POST", f"{THINGS.path}:query", body)
        assert len(page.items) <= page_size
        seen += page.items
        token = page.json()["next_page_token"]
        if token is None:
            return seen
