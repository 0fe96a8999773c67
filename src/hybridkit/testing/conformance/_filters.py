"""Filters: each operator means the same in the JSON form, in the URL form and on every database."""

# ruff: noqa: S101 - these are tests

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import pytest

from hybridkit.testing.conformance._resources import THINGS
from hybridkit.testing.conformance._service import ServiceUnderTest

OWNER: Final = "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"
RECORDS: Final[tuple[dict[str, Any], ...]] = (
    {
        "name": "anna",
        "code": None,
        "kind": "paper",
        "price": "10.50",
        "rank": 1,
        "weight": 1.5,
        "due_at": "2026-01-01T00:00:00Z",
        "owner_id": OWNER,
        "details": {"size": 1, "color": "red"},
        "marks": ["a", "b, c", 1],
    },
    {
        "name": "Anton",
        "kind": "pen",
        "price": "9.99",
        "rank": 2,
        "weight": -0.5,
        "due_at": "2026-01-01T00:00:00.001Z",
        "details": {"size": 2, "color": "blue, dark"},
        "marks": ["a", True, 2.5],
    },
    {"name": "berta*", "kind": "ink", "price": "100", "rank": -3, "details": {"size": "big"}, "marks": []},
    {"name": "c_%\\(,)\"'", "details": {"color": None}},
)
MOMENT: Final = "2026-01-01T00:00:00"
ANNA, ANTON, BERTA, STRANGE = (record["name"] for record in RECORDS)

type Tree = dict[str, Any]

CASES: Final[tuple[tuple[Tree, tuple[str, str], list[str]], ...]] = (
    # equality
    ({"eq": ["name", ANNA]}, ("name", "eq.anna"), [ANNA]),
    ({"eq": ["name", STRANGE]}, ("name", f"eq.{STRANGE}"), [STRANGE]),
    ({"neq": ["name", ANNA]}, ("name", "neq.anna"), [ANTON, BERTA, STRANGE]),
    ({"eq": ["rank", 1]}, ("rank", "eq.1"), [ANNA]),
    ({"neq": ["rank", 1]}, ("rank", "neq.1"), [ANTON, BERTA]),
    ({"eq": ["price", "10.5"]}, ("price", "eq.10.5"), [ANNA]),
    ({"eq": ["kind", "ink"]}, ("kind", "eq.ink"), [BERTA]),
    ({"eq": ["owner_id", OWNER.upper()]}, ("owner_id", f"eq.{OWNER}"), [ANNA]),
    ({"eq": ["is_active", True]}, ("is_active", "eq.true"), [ANNA, ANTON, BERTA, STRANGE]),
    ({"eq": ["due_at", "2026-01-01T01:00:00+01:00"]}, ("due_at", "eq.2026-01-01T00:00:00Z"), [ANNA]),
    # size
    ({"gt": ["price", "9.99"]}, ("price", "gt.9.99"), [ANNA, BERTA]),
    ({"gte": ["price", "9.99"]}, ("price", "gte.9.99"), [ANNA, ANTON, BERTA]),
    ({"lt": ["rank", 1]}, ("rank", "lt.1"), [BERTA]),
    ({"lte": ["rank", 1]}, ("rank", "lte.1"), [ANNA, BERTA]),
    ({"gt": ["due_at", "2026-01-01T00:00:00Z"]}, ("due_at", "gt.2026-01-01T00:00:00Z"), [ANTON]),
    ({"lt": ["weight", 0]}, ("weight", "lt.0"), [ANTON]),
    # numbers that the field doesn't have, and moments between two of its own
    ({"lt": ["rank", 2**31]}, ("rank", "lt.2147483648"), [ANNA, ANTON, BERTA]),
    ({"lte": ["rank", 10**20]}, ("rank", f"lte.{10**20}"), [ANNA, ANTON, BERTA]),
    ({"gt": ["rank", 10**20]}, ("rank", f"gt.{10**20}"), []),
    ({"gte": ["rank", -(10**20)]}, ("rank", f"gte.{-(10**20)}"), [ANNA, ANTON, BERTA]),
    ({"lt": ["rank", -(10**20)]}, ("rank", f"lt.{-(10**20)}"), []),
    ({"not": {"gt": ["rank", 10**20]}}, ("rank", f"not.gt.{10**20}"), [ANNA, ANTON, BERTA]),
    ({"eq": ["rank", 10**20]}, ("rank", f"eq.{10**20}"), []),
    ({"not": {"eq": ["rank", 10**20]}}, ("rank", f"not.eq.{10**20}"), [ANNA, ANTON, BERTA]),
    ({"neq": ["rank", 10**20]}, ("rank", f"neq.{10**20}"), [ANNA, ANTON, BERTA]),
    ({"lt": ["rank", 1.5]}, ("rank", "lt.1.5"), [ANNA, BERTA]),
    ({"lte": ["rank", "1.5"]}, ("rank", "lte.1.5"), [ANNA, BERTA]),
    ({"gt": ["rank", 1.5]}, ("rank", "gt.1.5"), [ANTON]),
    ({"gte": ["rank", 1.5]}, ("rank", "gte.1.5"), [ANTON]),
    ({"gt": ["rank", -3.5]}, ("rank", "gt.-3.5"), [ANNA, ANTON, BERTA]),
    ({"eq": ["rank", 1.5]}, ("rank", "eq.1.5"), []),
    ({"neq": ["rank", 1.5]}, ("rank", "neq.1.5"), [ANNA, ANTON, BERTA]),
    ({"eq": ["rank", 1.0]}, ("rank", "eq.1.0"), [ANNA]),
    ({"in": ["rank", [1.5, 2, 10**20]]}, ("rank", f"in.(1.5,2,{10**20})"), [ANTON]),
    ({"in": ["rank", [1.5, 10**20]]}, ("rank", f"in.(1.5,{10**20})"), []),
    ({"not": {"in": ["rank", [1.5, 10**20]]}}, ("rank", f"not.in.(1.5,{10**20})"), [ANNA, ANTON, BERTA]),
    ({"lt": ["weight", "1e400"]}, ("weight", "lt.1e400"), [ANNA, ANTON]),
    ({"gt": ["weight", "-1e400"]}, ("weight", "gt.-1e400"), [ANNA, ANTON]),
    ({"gte": ["weight", "1e400"]}, ("weight", "gte.1e400"), []),
    ({"gt": ["weight", 1]}, ("weight", "gt.1"), [ANNA]),
    ({"gt": ["price", 10]}, ("price", "gt.10"), [ANNA, BERTA]),
    ({"eq": ["price", 100]}, ("price", "eq.100"), [BERTA]),
    ({"lt": ["price", "1e200000"]}, ("price", "lt.1e200000"), [ANNA, ANTON, BERTA]),
    ({"lt": ["price", "-1e200000"]}, ("price", "lt.-1e200000"), []),
    ({"gt": ["price", f"9.99{'0' * 40}1"]}, ("price", f"gt.9.99{'0' * 40}1"), [ANNA, BERTA]),
    ({"lt": ["price", f"9.99{'0' * 40}1"]}, ("price", f"lt.9.99{'0' * 40}1"), [ANTON]),
    ({"eq": ["price", f"9.99{'0' * 40}1"]}, ("price", f"eq.9.99{'0' * 40}1"), []),
    ({"gt": ["price", "1e-20000"]}, ("price", "gt.1e-20000"), [ANNA, ANTON, BERTA]),
    ({"eq": ["due_at", f"{MOMENT}.0005Z"]}, ("due_at", f"eq.{MOMENT}.0005Z"), []),
    ({"neq": ["due_at", f"{MOMENT}.0005Z"]}, ("due_at", f"neq.{MOMENT}.0005Z"), [ANNA, ANTON]),
    ({"not": {"eq": ["due_at", f"{MOMENT}.0005Z"]}}, ("due_at", f"not.eq.{MOMENT}.0005Z"), [ANNA, ANTON]),
    ({"lt": ["due_at", f"{MOMENT}.0005Z"]}, ("due_at", f"lt.{MOMENT}.0005Z"), [ANNA]),
    ({"lte": ["due_at", f"{MOMENT}.0005Z"]}, ("due_at", f"lte.{MOMENT}.0005Z"), [ANNA]),
    ({"gt": ["due_at", f"{MOMENT}.0005Z"]}, ("due_at", f"gt.{MOMENT}.0005Z"), [ANTON]),
    ({"gte": ["due_at", f"{MOMENT}.000999Z"]}, ("due_at", f"gte.{MOMENT}.000999Z"), [ANTON]),
    ({"gte": ["due_at", f"{MOMENT}.001Z"]}, ("due_at", f"gte.{MOMENT}.001Z"), [ANTON]),
    (
        {"in": ["due_at", [f"{MOMENT}.0005Z", f"{MOMENT}.001Z"]]},
        ("due_at", f"in.({MOMENT}.0005Z,{MOMENT}.001Z)"),
        [ANTON],
    ),
    ({"not": {"in": ["due_at", [f"{MOMENT}.0005Z"]]}}, ("due_at", f"not.in.({MOMENT}.0005Z)"), [ANNA, ANTON]),
    (
        {"lte": ["due_at", "9999-12-31T23:59:59.999999Z"]},
        ("due_at", "gte.0001-01-01T00:00:00Z"),
        [ANNA, ANTON],
    ),
    # membership
    ({"in": ["name", [ANNA, BERTA]]}, ("name", "in.(anna,berta*)"), [ANNA, BERTA]),
    ({"in": ["rank", [1, 2, 7]]}, ("rank", "in.(1,2,7)"), [ANNA, ANTON]),
    ({"in": ["rank", []]}, ("rank", "in.()"), []),
    # lists
    ({"contains": ["marks", ["a"]]}, ("marks", "contains.(a)"), [ANNA, ANTON]),
    ({"contains": ["marks", [1, "a"]]}, ("marks", "contains.(1,a)"), [ANNA]),
    ({"contains": ["marks", ["1"]]}, ("marks", 'contains.("\\"1\\"")'), []),
    ({"contains": ["marks", [1.0]]}, ("marks", "contains.(1.0)"), [ANNA]),
    ({"contains": ["marks", ["b, c"]]}, ("marks", 'contains.("b, c")'), [ANNA]),
    ({"contains": ["marks", [True]]}, ("marks", "contains.(true)"), [ANTON]),
    ({"contains": ["marks", []]}, ("marks", "contains.()"), [ANNA, ANTON, BERTA]),
    ({"not": {"contains": ["marks", ["a", 1]]}}, ("marks", "not.contains.(a,1)"), [ANTON, BERTA]),
    ({"not": {"contains": ["marks", []]}}, ("marks", "not.contains.()"), []),
    ({"overlaps": ["marks", [1, 2.5]]}, ("marks", "overlaps.(1,2.5)"), [ANNA, ANTON]),
    ({"overlaps": ["marks", ["b, c", "z"]]}, ("marks", 'overlaps.("b, c",z)'), [ANNA]),
    ({"overlaps": ["marks", []]}, ("marks", "overlaps.()"), []),
    ({"not": {"overlaps": ["marks", [1, 7]]}}, ("marks", "not.overlaps.(1,7)"), [ANTON, BERTA]),
    ({"not": {"overlaps": ["marks", []]}}, ("marks", "not.overlaps.()"), [ANNA, ANTON, BERTA]),
    # patterns
    ({"like": ["name", "an%"]}, ("name", "like.an*"), [ANNA]),
    ({"ilike": ["name", "AN%"]}, ("name", "ilike.AN*"), [ANNA, ANTON]),
    ({"like": ["name", "_nton"]}, ("name", "like._nton"), [ANTON]),
    ({"like": ["name", "%\\%%"]}, ("name", "like.*\\%*"), [STRANGE]),
    ({"like": ["name", "%*"]}, ("name", "like.*\\*"), [BERTA]),
    ({"like": ["name", "an.a"]}, ("name", "like.an.a"), []),
    # absence
    ({"is": ["rank", None]}, ("rank", "is.null"), [STRANGE]),
    ({"is": ["is_active", True]}, ("is_active", "is.true"), [ANNA, ANTON, BERTA, STRANGE]),
    ({"is": ["is_active", False]}, ("is_active", "is.false"), []),
    # negation: a condition on no value is neither true nor, negated, false
    ({"not": {"eq": ["rank", 1]}}, ("rank", "not.eq.1"), [ANTON, BERTA]),
    ({"not": {"neq": ["rank", 1]}}, ("rank", "not.neq.1"), [ANNA]),
    ({"not": {"gt": ["rank", 1]}}, ("rank", "not.gt.1"), [ANNA, BERTA]),
    ({"not": {"in": ["rank", [1]]}}, ("rank", "not.in.(1)"), [ANTON, BERTA]),
    ({"not": {"in": ["rank", []]}}, ("rank", "not.in.()"), [ANNA, ANTON, BERTA, STRANGE]),
    ({"not": {"like": ["name", "a%"]}}, ("name", "not.like.a*"), [ANTON, BERTA, STRANGE]),
    ({"not": {"is": ["rank", None]}}, ("rank", "not.is.null"), [ANNA, ANTON, BERTA]),
    # combinations
    (
        {"or": [{"eq": ["rank", 1]}, {"is": ["rank", None]}]},
        ("or", "(rank.eq.1,rank.is.null)"),
        [ANNA, STRANGE],
    ),
    (
        {"not": {"or": [{"eq": ["rank", 1]}, {"eq": ["name", STRANGE]}]}},
        ("not.or", f'(rank.eq.1,name.eq."{STRANGE.replace("\\", "\\\\").replace('"', '\\"')}")'),
        [ANTON, BERTA],
    ),
    (
        {"and": [{"gt": ["rank", 0]}, {"not": {"eq": ["kind", "pen"]}}]},
        ("and", "(rank.gt.0,kind.not.eq.pen)"),
        [ANNA],
    ),
    (
        {"not": {"and": [{"gt": ["rank", 0]}, {"eq": ["name", STRANGE]}]}},
        ("not.and", f'(rank.gt.0,name.eq."{STRANGE.replace("\\", "\\\\").replace('"', '\\"')}")'),
        [ANNA, ANTON, BERTA],
    ),
    # inside of documents
    ({"eq": ["details.size", 1]}, ("details.size", "eq.1"), [ANNA]),
    ({"eq": ["details.size", "big"]}, ("details.size", "eq.big"), [BERTA]),
    ({"gt": ["details.size", 1]}, ("details.size", "gt.1"), [ANTON]),
    (
        {"in": ["details.color", ["red", "blue, dark"]]},
        ("details.color", 'in.(red,"blue, dark")'),
        [ANNA, ANTON],
    ),
    ({"is": ["details.color", None]}, ("details.color", "is.null"), [BERTA, STRANGE]),
    ({"neq": ["details.color", "red"]}, ("details.color", "neq.red"), [ANTON]),
    ({"like": ["details.color", "blue%"]}, ("details.color", "like.blue*"), [ANTON]),
)


_SIZES: Final[Mapping[str, Any]] = {
    "one": 1,
    "one and a half": 1.5,
    "digit": "1",
    "word": "x",
    "true": True,
    "false": False,
    "empty list": [],
    "list": [1],
    "words": ["x", "y"],
    "object": {"a": 1},
    "null": None,
}
"""The values at one path of a document, one for each record; another record has no document."""

_ON_A_PATH: Final[Sequence[tuple[Mapping[str, Any], set[str]]]] = (
    ({"eq": ["details.size", 1]}, {"one"}),
    ({"eq": ["details.size", "1"]}, {"digit"}),
    ({"eq": ["details.size", True]}, {"true"}),
    ({"eq": ["details.size", [1]]}, {"list"}),
    ({"eq": ["details.size", {"a": 1}]}, {"object"}),
    ({"neq": ["details.size", 1]}, _SIZES.keys() - {"one", "null"}),
    ({"neq": ["details.size", [1]]}, _SIZES.keys() - {"list", "null"}),
    ({"not": {"eq": ["details.size", "x"]}}, _SIZES.keys() - {"word", "null"}),
    ({"in": ["details.size", [1, "x", ["x", "y"]]]}, {"one", "word", "words"}),
    ({"in": ["details.size", []]}, set()),
    ({"not": {"in": ["details.size", [1, [1]]]}}, _SIZES.keys() - {"one", "list", "null"}),
    ({"gt": ["details.size", 1]}, {"one and a half"}),
    ({"lte": ["details.size", 1]}, {"one"}),
    ({"gte": ["details.size", "1"]}, {"digit", "word"}),
    ({"lt": ["details.size", "x"]}, {"digit"}),
    ({"not": {"gt": ["details.size", 1]}}, _SIZES.keys() - {"one and a half", "null"}),
    ({"like": ["details.size", "x%"]}, {"word"}),
    ({"ilike": ["details.size", "X"]}, {"word"}),
    ({"is": ["details.size", None]}, {"null", "none"}),
    ({"not": {"is": ["details.size", None]}}, _SIZES.keys() - {"null"}),
    ({"is": ["details.size", True]}, {"true"}),
    ({"not": {"is": ["details.size", True]}}, _SIZES.keys() - {"true"} | {"none"}),
    ({"eq": ["details.color", "red"]}, set()),
)


@pytest.mark.asyncio
class FiltersConformance:
    """Tests of filters: operators, syntax, limits and declared fields."""

    async def test_every_operator_in_both_forms(self, service: ServiceUnderTest) -> None:
        """The JSON form and the URL form find the same records, which are listed by hand."""
        for record in RECORDS:
            await service.thing(**record)
        wrong: list[object] = []
        for tree, param, expected in CASES:
            found = {
                "json": await service.names(tree),
                "url": await service.names_by_url(param),
            }
            wrong += [(form, tree, names) for form, names in found.items() if names != sorted(expected)]
        assert wrong == []

    async def test_the_method_query_is_the_same(self, service: ServiceUnderTest) -> None:
        """QUERY (RFC 10008) answers what `POST …:query` does."""
        service.needs("query_method")
        record = await service.thing()
        answer = await service.ask("QUERY", THINGS.path, {"where": {"eq": ["tag", service.tag]}})
        assert answer.items == [record]

    @pytest.mark.parametrize(
        ("where", "pointer"),
        [
            ({"eq": ["secret", 1]}, "/where/eq"),
            ({"eq": ["place_id", "x"]}, "/where/eq"),
            ({"eq": ["rank", "many"]}, "/where/eq"),
            ({"eq": ["rank", None]}, "/where/eq"),
            ({"eq": ["rank", {"$gt": 0}]}, "/where/eq"),
            ({"eq": ["name", {"$ne": None}]}, "/where/eq"),
            ({"in": ["rank", 1]}, "/where/in"),
            ({"like": ["rank", "1%"]}, "/where/like"),
            ({"between": ["rank", 1]}, "/where/between"),
            ({"$where": "sleep(1000)"}, "/where/$where"),
            ({"$expr": {"$gt": ["$rank", 0]}}, "/where/$expr"),
            ({"and": [{"eq": ["rank", 1]}, {"eq": ["no", 1]}]}, "/where/and/1/eq"),
            ({"and": []}, "/where/and"),
            ({"eq": ["rank"]}, "/where/eq"),
            ({}, "/where"),
            ("rank = 1", "/where"),
        ],
    )
    async def test_what_is_not_declared_is_refused(
        self, service: ServiceUnderTest, where: object, pointer: str
    ) -> None:
        """The pointer leads to the part of the filter that is wrong."""
        answer = await service.ask("POST", f"{THINGS.path}:query", {"where": where})
        assert answer.problem == (400, "INVALID_QUERY")
        assert answer.pointers == [pointer]

    @pytest.mark.parametrize(
        "query",
        [
            "secret=eq.1",
            "rank=eq.many",
            "rank=1",
            "rank=between.1",
            "rank=in.(1",
            "or=(rank.eq.1",
            "or=()",
            "$where=eq.1",
            "rank[$gt]=0",
            "details.$where=eq.1",
            "order=secret",
            "order=rank.sideways",
            "select=secret",
            "page_size=0",
            "page_size=1001",
            "page_size=many",
            "page_size=1&page_size=2",
            "name=like.a\\",
        ],
    )
    async def test_a_url_that_is_not_allowed_is_refused(self, service: ServiceUnderTest, query: str) -> None:
        """Undeclared fields, odd values, repeated options and broken syntax are bad queries."""
        answer = await service.get(f"{THINGS.path}?{quote(query, safe='=&.,()%$[]')}")
        assert answer.problem == (400, "INVALID_QUERY")

    async def test_filters_are_limited(self, service: ServiceUnderTest) -> None:
        """Their depth, the number of conditions and the length of `in` have limits."""
        deep: Any = {"eq": ["rank", 1]}
        for _ in range(40):
            deep = {"or": [deep, {"eq": ["rank", 2]}]}
        for where in (
            deep,
            {"and": [{"eq": ["rank", 1]}] * 101},
            {"in": ["rank", list(range(1001))]},
        ):
            answer = await service.ask("POST", f"{THINGS.path}:query", {"where": where})
            assert answer.problem == (400, "INVALID_QUERY")
        assert await service.find({"in": ["rank", list(range(1000))]}) == []

    async def test_a_condition_on_a_path_is_of_one_whole_value(self, service: ServiceUnderTest) -> None:
        """An array isn't its element, and a path doesn't lead through one."""
        for name, size in _SIZES.items():
            await service.thing(name=name, details={"size": size, "color": [{"red": 1}, "red"]})
        await service.thing(name="none")
        for where, names in _ON_A_PATH:
            assert set(await service.names(where)) == names, where
        for operator in ("gt", "gte", "lt", "lte"):
            for value in ([1], {"a": 1}):
                answer = await service.ask(
                    "POST", f"{THINGS.path}:query", {"where": {operator: ["details.size", value]}}
                )
                assert answer.problem == (400, "INVALID_QUERY")

    async def test_a_requirement_on_a_path_is_of_one_whole_value(self, service: ServiceUnderTest) -> None:
        """A list that has the value is not the value."""
        single, several = await service.thing(details={"size": 1}), await service.thing(details={"size": [1]})
        for record, status in ((single, 200), (several, 412)):
            update = {"op": "update", "resource": THINGS.name, "id": record["id"], "data": {"rank": 1}}
            answer = await service.transact({**update, "require": {"eq": ["details.size", 1]}})
            assert answer.status == status
