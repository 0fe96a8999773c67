"""Filters find what they say, pages neither skip nor repeat, and nothing but bound values reaches the database."""

import itertools
from typing import Any

import pytest

from hybridkit.resources import Query


async def fill(service: Any) -> list[dict[str, Any]]:
    """Ties and NULLs in every column that is ordered by."""
    rows: list[dict[str, Any]] = [
        {"name": "a", "rank": 1, "price": "1.00", "due_at": "2026-01-01T00:00:00Z", "details": {"size": 1}},
        {"name": "b", "rank": 1, "price": None, "due_at": None, "details": {"size": "1"}},
        {"name": "c", "rank": None, "price": "2.50", "due_at": "2026-01-01T00:00:00.001Z", "details": None},
        {
            "name": "d%",
            "rank": 2,
            "price": "2.50",
            "due_at": "2026-01-02T00:00:00Z",
            "details": {"size": None},
        },
        {"name": "e_", "rank": None, "price": None, "due_at": None, "details": {"size": 3, "color": "red"}},
        {
            "name": "Eb\\",
            "rank": 2,
            "price": "10.00",
            "due_at": "2026-01-01T00:00:00Z",
            "details": {"size": 3},
        },
    ]
    answer = await service.transact(
        *(
            {"op": "create", "resource": "items", "id": f"00000000-0000-6000-8000-{n:012}", "data": row}
            for n, row in enumerate(rows)
        )
    )
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


async def names(service: Any, where: object) -> set[str]:
    answer = await service.send("POST", "/v1/items:query", {"where": where})
    assert answer.status_code == 200, answer.text
    return {item["name"] for item in answer.json()["items"]}


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"eq": ["name", "a"]}, {"a"}),
    ({"neq": ["rank", 1]}, {"d%", "Eb\\"}),
    ({"gt": ["price", "2.50"]}, {"Eb\\"}),
    ({"gte": ["price", "2.50"]}, {"c", "d%", "Eb\\"}),
    ({"lt": ["rank", 2]}, {"a", "b"}),
    ({"lte": ["due_at", "2026-01-01T00:00:00Z"]}, {"a", "Eb\\"}),
    ({"gt": ["due_at", "2026-01-01T00:00:00Z"]}, {"c", "d%"}),
    ({"in": ["name", ["a", "c", "nobody"]]}, {"a", "c"}),
    ({"in": ["name", []]}, set()),
    ({"like": ["name", "_b%"]}, {"Eb\\"}),
    ({"like": ["name", "d\\%"]}, {"d%"}),
    ({"like": ["name", "%\\\\"]}, {"Eb\\"}),
    ({"ilike": ["name", "e%"]}, {"e_", "Eb\\"}),
    ({"is": ["rank", None]}, {"c", "e_"}),
    ({"is": ["is_active", True]}, {"a", "b", "c", "d%", "e_", "Eb\\"}),
    ({"is": ["is_active", False]}, set()),
    ({"not": {"is": ["rank", None]}}, {"a", "b", "d%", "Eb\\"}),
    ({"not": {"eq": ["rank", 1]}}, {"d%", "Eb\\"}),
    ({"and": [{"eq": ["rank", 1]}, {"is": ["price", None]}]}, {"b"}),
    ({"or": [{"eq": ["name", "a"]}, {"not": {"lt": ["rank", 2]}}]}, {"a", "d%", "Eb\\"}),
    ({"eq": ["details.size", 1]}, {"a"}),
    ({"eq": ["details.size", "1"]}, {"b"}),
    ({"neq": ["details.size", 3]}, {"a", "b"}),
    ({"gt": ["details.size", 0]}, {"a", "e_", "Eb\\"}),
    ({"lte": ["details.size", 1]}, {"a"}),
    ({"in": ["details.size", [3, "1"]]}, {"b", "e_", "Eb\\"}),
    ({"is": ["details.size", None]}, {"c", "d%"}),
    ({"is": ["details.size", True]}, set()),
    ({"not": {"is": ["details.size", True]}}, {"a", "b", "c", "d%", "e_", "Eb\\"}),
    ({"like": ["details.color", "r%"]}, {"e_"}),
]


async def test_filters_find_what_they_say(service: Any) -> None:
    """Each filter, sent as JSON, finds exactly its records."""
    await fill(service)
    for where, expected in FILTERS:
        assert await names(service, where) == expected, where


async def test_both_forms_of_a_query_find_the_same(service: Any) -> None:
    """The same filters as query strings find the same records."""
    await fill(service)
    for where, expected in FILTERS:
        params = Query.from_json(service.items, {"where": where}).to_params()
        answer = await service.http.get("/v1/items", params=params)
        assert {item["name"] for item in answer.json()["items"]} == expected, params


async def read_pages(service: Any, body: dict[str, Any]) -> list[str]:
    found: list[str] = []
    token: str | None = None
    while True:
        more = {} if token is None else {"page_token": token}
        page = (await service.send("POST", "/v1/items:query", {**body, **more})).json()
        assert len(page["items"]) <= body["page_size"]
        found += [item["id"] for item in page["items"]]
        token = page["next_page_token"]
        if token is None:
            return found
        assert len(page["items"]) == body["page_size"]


ORDERS = [
    [],
    [["id", "desc"]],
    *([[name, direction]] for name in ("rank", "price", "due_at") for direction in ("asc", "desc")),
    [["rank", "desc"], ["price", "asc"]],
    [["due_at", "asc"], ["rank", "desc"], ["id", "desc"]],
    [["created_at", "desc"], ["id", "desc"]],
    [["created_at", "asc"]],
    [["details.size", "asc"]],
    [["details.size", "desc"], ["name", "asc"]],
]


async def test_pages_are_the_whole_in_order(service: Any) -> None:
    """With ties and NULLs, in any order, the pages together show what one big page shows."""
    await fill(service)
    for order, size in itertools.product(ORDERS, (1, 2, 5)):
        whole = (await service.send("POST", "/v1/items:query", {"order": order})).json()
        assert whole["next_page_token"] is None
        assert await read_pages(service, {"order": order, "page_size": size}) == [
            item["id"] for item in whole["items"]
        ], (order, size)


async def test_an_order_is_what_it_says(service: Any) -> None:
    """NULLs come last, or first in a descending order."""
    await fill(service)
    ranks = [
        [item["rank"] for item in (await service.get(f"/v1/items?order=rank.{way}")).json()["items"]]
        for way in ("asc", "desc")
    ]
    assert ranks == [[1, 1, 2, 2, None, None], [None, None, 2, 2, 1, 1]]


async def test_rows_inserted_meanwhile_move_nothing(service: Any) -> None:
    """A page begins after the last row of the one before, so each row is seen once, whatever is inserted."""
    await fill(service)
    path = "/v1/items?order=name.desc&page_size=2"
    page = (await service.get(path)).json()
    seen = [item["name"] for item in page["items"]]
    await service.create("zz")
    await service.create("aa")
    while page["next_page_token"]:
        page = (await service.get(f"{path}&page_token={page['next_page_token']}")).json()
        seen += [item["name"] for item in page["items"]]
    assert sorted(seen) == sorted(["a", "aa", "b", "c", "d%", "e_", "Eb\\"])


async def test_rows_closer_together_than_a_millisecond_are_not_skipped(service: Any) -> None:
    """The wire has milliseconds, but SQL may write more; the token keeps it all."""
    await fill(service)
    await service.sql(
        "UPDATE items SET created_at = '2026-01-01'::timestamptz + (random() * 900) * interval '1 us'"
    )
    body = {"order": [["created_at", "asc"]], "page_size": 1}
    assert len(set(await read_pages(service, body))) == 6


async def test_a_token_holds_for_its_query_only(service: Any) -> None:
    """A page token is refused with another order, filter or resource, and if it is forged."""
    await fill(service)
    first = (await service.get("/v1/items?order=rank&page_size=2&rank=lt.5")).json()["next_page_token"]
    assert (await service.get(f"/v1/items?order=rank&rank=lt.5&page_token={first}")).status_code == 200
    for other in (
        f"/v1/items?order=rank.desc&rank=lt.5&page_token={first}",
        f"/v1/items?order=rank&rank=lt.6&page_token={first}",
        f"/v1/items?order=rank&page_token={first}",
        f"/v1/owners?page_token={first}",
        f"/v1/items?order=rank&rank=lt.5&page_token={first[:-2]}xx",
        "/v1/items?page_token=made-up",
        "/v1/items?page_token=%C3%A4",
        "/v1/items?page_token=",
    ):
        answer = await service.get(other)
        assert (answer.status_code, answer.json()["code"]) == (400, "PAGE_TOKEN_MISMATCH"), other


async def test_a_selection_has_its_fields_and_a_weak_etag(service: Any) -> None:
    """A page of selected fields has only these, with a weak ETag, and goes on as any other."""
    [first, *_] = await fill(service)
    page = (await service.get("/v1/items?select=name,etag&order=rank&page_size=1")).json()
    assert page["items"] == [{"name": first["name"], "etag": f"W/{first['etag']}"}]
    assert page["next_page_token"] is not None


@pytest.mark.parametrize(
    "query",
    [
        "secret=eq.1",
        "name=maybe.1",
        "rank=eq.text",
        "rank=eq.NaN",
        "price=gt.Infinity",
        "name=eq.%00",
        "name=is.true",
        "due_at=eq.0001-01-01T00:00:00%2B23:00",
        "order=secret",
        "select=secret",
        "page_size=0",
        "page_size=1001",
        "incarnation=eq.1",
        "owner_id=eq.1",
    ],
)
async def test_what_a_resource_does_not_allow_is_400(service: Any, query: str) -> None:
    """Unknown fields, operators and orders are refused before the database is asked."""
    answer = await service.get(f"/v1/items?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_QUERY")


INJECTIONS = [
    "'; DROP TABLE items; --",
    "' OR '1'='1",
    '" OR 1=1 --',
    "\\'; SELECT pg_sleep(10); --",
    "$1",
    "%s",
    ":name",
    "{}",
    "a\\",
    "') UNION SELECT value FROM hk_secrets --",
]


async def test_hostile_text_is_a_value_and_nothing_else(service: Any) -> None:
    """SQL in a value is stored and found as text."""
    await fill(service)
    for text in INJECTIONS:
        assert await names(service, {"eq": ["name", text]}) == set()
        assert await names(service, {"eq": ["details.color", text]}) == set()
        assert await names(service, {"in": ["name", [text, "a"]]}) == {"a"}
        await service.create(text, details={text: text})
        assert await names(service, {"eq": ["name", text]}) == {text}
    assert len(await names(service, {"not": {"is": ["id", None]}})) == 6 + len(INJECTIONS)


async def test_hostile_names_never_reach_the_database(service: Any) -> None:
    """SQL in place of a field, operator or direction is an invalid query."""
    for text in INJECTIONS:
        for body in (
            {"where": {"eq": [text, "x"]}},
            {"where": {"eq": [f"details.{text}", "x"]}},
            {"where": {text: ["name", "x"]}},
            {"order": [[text, "asc"]]},
            {"order": [["name", text]]},
            {"select": [text]},
        ):
            answer = await service.send("POST", "/v1/items:query", body)
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_QUERY")
