"""Aggregations: the same rows from every database."""

# ruff: noqa: S101 - these are tests

from typing import Any, Final

import pytest

from hybridkit.testing.conformance._resources import THINGS
from hybridkit.testing.conformance._service import Answer, ServiceUnderTest

RECORDS: Final[tuple[dict[str, Any], ...]] = (
    {"kind": "pen", "price": "1.50", "rank": 1, "quantity": 2, "name": "a"},
    {"kind": "pen", "price": "2.50", "rank": 4, "quantity": 4, "name": "b"},
    {"kind": "ink", "price": None, "rank": None, "quantity": 1, "name": "c"},
    {"kind": "ink", "price": "7.25", "rank": None, "quantity": 0, "name": "a"},
    {"kind": "paper", "price": None, "rank": 1, "quantity": 5, "name": "d"},
)


@pytest.mark.asyncio
class AggregatesConformance:
    """Tests of `POST /v1/{resource}:aggregate`."""

    async def test_groups_and_functions(self, service: ServiceUnderTest) -> None:
        """Each function leaves nulls out, and a row's members come in the order of the request."""
        await _fill(service)
        answer = await _ask(
            service,
            group_by=["kind"],
            functions={
                "things": ["count"],
                "names": ["count_distinct", "name"],
                "value": ["sum", "price"],
                "ranks": ["sum", "rank"],
                "least": ["min", "price"],
                "most": ["max", "quantity"],
                "last": ["max", "name"],
            },
        )
        rows = [tuple(row.values()) for row in answer.items]
        assert rows == [
            ("ink", 2, 2, "7.25", None, "7.25", 1, "c"),
            ("paper", 1, 1, None, 1, None, 5, "d"),
            ("pen", 2, 2, "4.00", 5, "1.50", 4, "b"),
        ]
        assert list(answer.items[0]) == ["kind", "things", "names", "value", "ranks", "least", "most", "last"]

    async def test_averages_are_numbers(self, service: ServiceUnderTest) -> None:
        """They are taken over the values that are there, whatever the type of the field."""
        await _fill(service)
        [row] = (
            await _ask(
                service,
                functions={
                    "price": ["avg", "price"],
                    "rank": ["avg", "rank"],
                    "quantity": ["avg", "quantity"],
                },
            )
        ).items
        assert (float(row["price"]), float(row["rank"]), float(row["quantity"])) == (3.75, 2.0, 2.4)

    async def test_no_value_is_a_group(self, service: ServiceUnderTest) -> None:
        """Null is a group of its own, and is ordered like null in a page."""
        await _fill(service)
        functions = {"things": ["count"]}
        rows = (await _ask(service, group_by=["rank"], functions=functions)).items
        assert rows == [{"rank": 1, "things": 2}, {"rank": 4, "things": 1}, {"rank": None, "things": 2}]
        rows = (await _ask(service, group_by=["rank"], functions=functions, order=[["rank", "desc"]])).items
        assert [row["rank"] for row in rows] == [None, 4, 1]

    async def test_order_and_limit(self, service: ServiceUnderTest) -> None:
        """Rows can be ordered by functions as well as by fields."""
        await _fill(service)
        answer = await _ask(
            service,
            group_by=["kind", "rank"],
            functions={"things": ["count"], "most": ["max", "quantity"]},
            order=[["things", "desc"], ["most", "desc"]],
            limit=3,
        )
        assert [(row["kind"], row["rank"]) for row in answer.items] == [
            ("ink", None),
            ("paper", 1),
            ("pen", 4),
        ]

    async def test_a_filter_comes_first(self, service: ServiceUnderTest) -> None:
        """A record that doesn't fit is in no group."""
        await _fill(service)
        answer = await _ask(service, where={"gt": ["quantity", 1]}, functions={"n": ["count"]})
        assert answer.items == [{"n": 3}]

    async def test_over_nothing_there_is_one_row(self, service: ServiceUnderTest) -> None:
        """Without groups a count is 0 and a sum is null; with groups there are no rows."""
        functions = {"n": ["count"], "sum": ["sum", "quantity"], "names": ["count_distinct", "name"]}
        assert (await _ask(service, functions=functions)).items == [{"n": 0, "sum": None, "names": 0}]
        assert (await _ask(service, functions=functions, group_by=["kind"])).items == []

    @pytest.mark.parametrize(
        "members",
        [
            {},
            {"functions": {}},
            {"functions": {"n": ["count", "x"]}},
            {"functions": {"n": ["median", "rank"]}},
            {"functions": {"n": ["sum", "secret"]}},
            {"functions": {"n": ["sum", "name"]}},
            {"functions": {"N'": ["count"]}},
            {"functions": {"n": ["count"]}, "group_by": ["secret"]},
            {"functions": {"n": ["count"]}, "group_by": ["kind; DROP"]},
            {"functions": {"n": ["count"]}, "order": [["secret", "asc"]]},
            {"functions": {"n": ["count"]}, "limit": 1001},
            {"functions": {"n": ["count"]}, "odd": 1},
            {"functions": {"n": ["count"]}, "where": {"eq": ["secret", 1]}},
        ],
    )
    async def test_what_is_not_allowed_is_refused(
        self, service: ServiceUnderTest, members: dict[str, object]
    ) -> None:
        """Undeclared fields, unknown functions, odd names and limits reach no database."""
        answer = await _ask(service, **members)
        assert answer.problem == (400, "INVALID_QUERY")

    async def test_a_pipeline_is_checked(self, service: ServiceUnderTest) -> None:
        """No stage or operator passes that writes, runs code or reads another collection."""
        body = {
            "pipeline": [{"$match": {"tag": service.tag}}, {"$group": {"_id": "$kind", "n": {"$sum": 1}}}]
        }
        answer = await service.ask("POST", f"{THINGS.path}:aggregate", body)
        if not service.has("pipelines"):
            assert answer.problem == (501, "NOT_SUPPORTED")
            return
        assert answer.status == 200
        stages: list[dict[str, Any]] = [
            {"$out": "stolen"},
            {"$merge": {"into": "stolen"}},
            {"$lookup": {"from": "hk_keys", "localField": "a", "foreignField": "b", "as": "c"}},
            {"$match": {"$where": "sleep(1000)"}},
            {"$match": {"$expr": {"$function": {"body": "x", "args": [], "lang": "js"}}}},
            {"$unionWith": "hk_keys"},
            {"$collStats": {}},
            {"$project": {"x": "$_hk"}},
        ]
        for stage in stages:
            refused = await service.ask("POST", f"{THINGS.path}:aggregate", {"pipeline": [stage]})
            assert refused.problem == (400, "INVALID_QUERY"), stage


async def _fill(service: ServiceUnderTest) -> None:
    for record in RECORDS:
        await service.thing(**record)


async def _ask(service: ServiceUnderTest, **members: object) -> Answer:
    where: dict[str, object] = {"eq": ["tag", service.tag]}
    if more := members.pop("where", None):
        where = {"and": [where, more]}
    return await service.ask("POST", f"{THINGS.path}:aggregate", {"where": where, **members})
