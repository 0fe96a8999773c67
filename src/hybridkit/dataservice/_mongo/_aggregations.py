"""Aggregations as stages of a pipeline, with the results that SQL gives.

Four things differ from MongoDB's own functions: a sum over nothing is null and not 0, no value doesn't count as one,
averages are exact where the values are decimals, and so are sums of integers beyond 64 bits, declared or inside of
documents, where MongoDB goes on with floats. So the pipeline brings sums and counts, and the rest is done here.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any, Final

from hybridkit.dataservice._mongo._collection import ResourceCollection, stored_name
from hybridkit.dataservice._mongo._driver._database import LIVE, StoredDocument
from hybridkit.dataservice._mongo._filters import condition
from hybridkit.dataservice._mongo._values import from_bson
from hybridkit.errors import InvalidQueryError
from hybridkit.resources import Aggregation, Function

_NUMERIC: Final = ("sum", "avg")


class Aggregated:
    """One aggregation: its stages for the server, and its rows from the server's results.

    Args:
        collection: of the resource.
        aggregation: the functions, groups and filter.

    Raises:
        InvalidQueryError: a sum or average is asked of a field that holds no numbers.
    """

    def __init__(self, collection: ResourceCollection, aggregation: Aggregation) -> None:
        self._aggregation = aggregation
        self._functions = list(aggregation.functions.items())
        for name, function in self._functions:
            if function.name in _NUMERIC and not collection.may_be_number(function.field or ""):
                raise InvalidQueryError(f"{function.field} is no number", pointer=f"/functions/{name}")

    def __repr__(self) -> str:
        return f"Aggregated({self._aggregation!r})"

    def stages(self) -> list[StoredDocument]:
        """Return the stages; letters stand for the names of results, so that none means anything to MongoDB."""
        where = self._aggregation.where
        wanted = LIVE if where is None else {"$and": [LIVE, condition(where)]}
        keys = {f"g{at}": _present(name) for at, name in enumerate(self._aggregation.group_by)}
        parts = dict(self._accumulators())
        return [
            {"$match": wanted},
            {"$group": {"_id": keys or None, **parts}},
            {"$addFields": dict(self._finished())},
            {"$addFields": dict(self._markers())},
            {"$sort": dict(self._order())},
            {"$limit": self._aggregation.limit},
        ]

    def _accumulators(self) -> Iterator[tuple[str, Any]]:
        for at, (_, function) in enumerate(self._functions):
            if function.field is None:
                yield f"f{at}", {"$sum": 1}
                continue
            value = _present(function.field)
            match function.name:
                case "count_distinct":
                    yield f"f{at}", {"$addToSet": value}
                case "sum" | "avg":
                    yield f"f{at}", {"$sum": {"$cond": [_is_integer(value), 0, value]}}
                    yield f"w{at}", {"$sum": {"$cond": [_is_integer(value), _exact(value), 0]}}
                    yield f"i{at}", {"$sum": {"$cond": [_is_integer(value), 1, 0]}}
                    yield f"n{at}", {"$sum": {"$cond": [{"$isNumber": value}, 1, 0]}}
                    yield f"x{at}", {"$sum": {"$cond": [_is_other(value), 1, 0]}}
                case "min":
                    yield f"f{at}", {"$min": value}
                case "max":
                    yield f"f{at}", {"$max": value}
                case _:
                    pass

    def _finished(self) -> Iterator[tuple[str, Any]]:
        """Yield the results that rows can be sorted by."""
        yield "one", 1  # a stage without members is refused
        for at, (_, function) in enumerate(self._functions):
            result = f"$f{at}"
            match function.name:
                case "count_distinct":
                    yield f"f{at}", {"$size": {"$setDifference": [result, [None]]}}
                case "sum" | "avg":
                    total = {"$cond": [{"$eq": [f"$i{at}", f"$n{at}"]}, f"$w{at}", _added(result, f"$w{at}")]}
                    mean = {"$divide": [total, f"$n{at}"]}
                    yield f"f{at}", {"$cond": [{"$eq": [f"$n{at}", 0]}, None, total]}
                    yield f"m{at}", {"$cond": [{"$eq": [f"$n{at}", 0]}, None, mean]}
                case _:
                    pass

    def _markers(self) -> Iterator[tuple[str, Any]]:
        """Yield members that say whether a value is null: SQL sorts by that first."""
        for name in self._sorted_names():
            path = self._path(name)
            yield f"o_{path.replace('.', '_')}", {"$cond": [{"$eq": [f"${path}", None]}, 1, 0]}
        yield "one", 1

    def _order(self) -> Iterator[tuple[str, int]]:
        directions = dict(self._aggregation.order)
        for name in self._sorted_names():
            sign = -1 if directions.get(name) == "desc" else 1
            path = self._path(name)
            yield f"o_{path.replace('.', '_')}", sign
            yield path, sign
        if not self._sorted_names():
            yield "one", 1

    def _sorted_names(self) -> Sequence[str]:
        named = [name for name, _ in self._aggregation.order]
        return list(dict.fromkeys([*named, *self._aggregation.group_by]))

    def _path(self, name: str) -> str:
        if name in self._aggregation.group_by:
            return f"_id.g{self._aggregation.group_by.index(name)}"
        at = list(self._aggregation.functions).index(name)
        return f"m{at}" if self._aggregation.functions[name].name == "avg" else f"f{at}"

    def rows(self, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of the aggregation.

        Raises:
            InvalidQueryError: a sum is asked of values that are no numbers.
        """
        if not found and not self._aggregation.group_by:  # over no records there is one row too
            empty = {"count": 0, "count_distinct": 0}
            return [{name: empty.get(function.name) for name, function in self._functions}]
        return [self._row(stored) for stored in found]

    def _row(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        keys: dict[str, Any] = {
            name: from_bson(stored["_id"][f"g{at}"]) for at, name in enumerate(self._aggregation.group_by)
        }
        results = {
            name: self._result(stored, at, name, function)
            for at, (name, function) in enumerate(self._functions)
        }
        return keys | results

    def _result(self, stored: Mapping[str, Any], at: int, name: str, function: Function) -> Any:
        if stored.get(f"x{at}"):
            raise InvalidQueryError(f"{function.field} is no number", pointer=f"/functions/{name}")
        value = from_bson(stored[f"f{at}"])
        if function.name in _NUMERIC and value is not None and stored[f"i{at}"] == stored[f"n{at}"]:
            value = int(value)  # of integers alone
        if function.name != "avg" or value is None:
            return value
        return _mean(value, stored[f"n{at}"]) if isinstance(value, Decimal) else value / stored[f"n{at}"]


def _present(name: str) -> Any:
    """Return the expression for a field's value, or null where there is none, so that those records form a group."""
    return {"$ifNull": [f"${stored_name(name)}", None]}


def _is_integer(value: Any) -> Any:
    return {"$in": [{"$type": value}, ["int", "long"]]}


def _exact(value: Any) -> Any:
    """Return the expression for an integer as a decimal, whose sums have 34 digits."""
    return {"$convert": {"input": value, "to": "decimal", "onError": None, "onNull": None}}


def _added(others: str, integers: str) -> Any:
    """Return the expression that adds the decimal sum of integers to a sum of floats or decimals, in their type."""
    are_decimals = {"$eq": [{"$type": others}, "decimal"]}
    return {"$add": [others, {"$cond": [are_decimals, integers, {"$toDouble": integers}]}]}


def _is_other(value: Any) -> Any:
    """Return the expression that is true for a value that is neither a number nor null."""
    return {"$and": [{"$ne": [value, None]}, {"$not": [{"$isNumber": value}]}]}


def _mean(total: Decimal, records: int) -> Decimal:
    """Return the average with as many digits as PostgreSQL computes: at least 16 significant ones, in groups of four.

    https://www.postgresql.org/docs/current/datatype-numeric.html#DATATYPE-NUMERIC-DECIMAL
    """
    if not total or not total.is_finite():
        return total * 0 if total.is_finite() else total
    weight, first = _leading_group(abs(total))
    other_weight, other_first = _leading_group(Decimal(records))
    groups = weight - other_weight - (first <= other_first)
    exponent = total.as_tuple().exponent
    scale = max(16 - 4 * groups, -exponent if isinstance(exponent, int) else 0, 0)
    with localcontext(prec=100 + abs(total.adjusted())):
        mean = (total / records).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP).normalize()
        return mean if int(mean.as_tuple().exponent) <= 0 else mean.quantize(Decimal(1))


def _leading_group(number: Decimal) -> tuple[int, int]:
    """Return the weight and the value of the first base-10,000 digit of a positive number."""
    weight = number.adjusted() // 4
    return weight, int(number.scaleb(-4 * weight))
