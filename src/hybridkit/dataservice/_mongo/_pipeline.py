"""Checks of a caller's aggregation pipeline: stages and operators are on a list, fields are declared by the resource.

Everything is checked before the server sees any of it, and what is not known is refused, so that a new operator of a
new server can't be reached either. Beyond the checks, tombstones and hidden records are filtered out first, and then
only the record's own fields go on, without the bookkeeping.

JSON has neither times nor decimals: `{"$date": "2026-01-15T10:30:00Z"}` and `{"$numberDecimal": "1.50"}` stand for
them. What is compared with a declared field in a `$match` needs neither.

https://www.mongodb.com/docs/manual/reference/operator/aggregation-pipeline/
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from hybridkit.dataservice._mongo._collection import ResourceCollection, stored_name
from hybridkit.dataservice._mongo._expressions import (
    NodeCount,
    checked_name,
    expression,
    literal,
    reference,
    refuse,
    visible_path,
)
from hybridkit.dataservice._mongo._steps import floor
from hybridkit.dataservice._mongo._values import to_bson

MAX_STAGES: Final = 20
MAX_FACETS: Final = 8
MAX_DOCUMENTS: Final = 1000
MAX_RESULT_BYTES: Final = 4 * 1024 * 1024
MAX_SKIP: Final = 1_000_000

_COMPARISONS: Final = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte"})
_ACCUMULATORS: Final = frozenset(
    {"$sum", "$avg", "$min", "$max", "$first", "$last", "$push", "$addToSet", "$stdDevPop", "$stdDevSamp"}
)

type Clause = dict[str, Any]


def checked_pipeline(collection: ResourceCollection, pipeline: Sequence[Any]) -> list[Clause]:
    """Return the stages to run: the caller's, with a projection to records after the leading `$match` stages.

    Args:
        collection: of the resource.
        pipeline: as it was sent.

    Raises:
        InvalidQueryError: a stage, operator, field or value is not allowed; the error has a pointer to it.
    """
    state = _Stages(collection)
    leading = 0
    for stage in pipeline:  # these may use indexes, so they run before the records are cut out
        if not isinstance(stage, dict) or list(cast("Clause", stage)) != ["$match"]:
            break
        leading += 1
    state.count(list(pipeline), "/pipeline")
    before = [
        state.leading_match(stage, f"/pipeline/{at}/$match") for at, stage in enumerate(pipeline[:leading])
    ]
    after = [
        state.stage(stage, f"/pipeline/{at}") for at, stage in enumerate(pipeline[leading:], start=leading)
    ]
    fields = [name for name in collection.resource.record.model_fields if name not in ("id", "etag")]
    return [*before, {"$project": {"_id": 0, "id": "$_id", **dict.fromkeys(fields, 1)}}, *after]


class _Stages:
    """A check of one stage after the other, with the fields that are visible between them."""

    def __init__(self, collection: ResourceCollection, visible: frozenset[str] | None = None) -> None:
        resource = collection.resource
        self._collection = collection
        self._declared = frozenset({"id", *resource.filterable, *resource.sortable})
        self._visible = self._declared if visible is None else visible
        self._computed = visible is not None
        self._stages = 0
        self._checked = NodeCount()

    def count(self, pipeline: object, pointer: str) -> Sequence[Any]:
        """Count the stages of a pipeline or facet, and refuse too many in all."""
        if not isinstance(pipeline, list) or not pipeline:
            raise refuse("a pipeline is a list of stages", pointer)
        stages = cast("list[Any]", pipeline)
        self._stages += len(stages)
        if self._stages > MAX_STAGES:
            raise refuse(f"a pipeline has at most {MAX_STAGES} stages", pointer)
        return stages

    def leading_match(self, stage: Any, pointer: str) -> Clause:
        """Check a `$match` of stored documents, whose id has another name."""
        return {"$match": self._match(stage["$match"], pointer, stored=True)}

    def stage(self, stage: object, pointer: str, *, nested: bool = False) -> Clause:
        """Check one stage."""
        if not isinstance(stage, dict) or len(cast("Clause", stage)) != 1:
            raise refuse('a stage has one member, such as {"$match": {…}}', pointer)
        ((name, body),) = cast("Clause", stage).items()
        at = f"{pointer}/{name[:50]}"
        check = self._CHECKS.get(name)
        if check is None or (nested and name == "$facet"):
            raise refuse(f"stages are {' '.join(self._CHECKS)}, and no $facet inside of another", at)
        return {name: check(self, body, at)}

    # ── stages ───────────────────────────────────────────────────────────────────────────────────

    def _group(self, body: object, at: str) -> Clause:
        members = _members(body, at)
        if "_id" not in members:
            raise refuse("$group needs an _id; null is one group of all", at)
        checked = {"_id": self._expression(members["_id"], f"{at}/_id")}
        outputs = {name: value for name, value in members.items() if name != "_id"}
        checked |= self._accumulated(outputs, at)
        self._now_visible({"_id", *outputs})
        return checked

    def _accumulated(self, outputs: Mapping[str, Any], at: str) -> Clause:
        checked: Clause = {}
        for name, value in outputs.items():
            where = f"{at}/{checked_name(name, at)}"
            ((operator, operand),) = _single(value, where).items()
            if operator == "$count" and operand == {}:
                checked[name] = {"$sum": 1}
            elif operator in _ACCUMULATORS:
                checked[name] = {operator: self._expression(operand, f"{where}/{operator}")}
            else:
                raise refuse(f"accumulators are {' '.join(sorted(_ACCUMULATORS))} and $count", where)
        return checked

    def _project(self, body: object, at: str) -> Clause:
        members = _members(body, at)
        dropped = [name for name, value in members.items() if type(value) in (bool, int) and value == 0]
        checked: Clause = {}
        for name, value in members.items():
            where = f"{at}/{name[:50]}"
            if type(value) in (bool, int) and value in (0, 1):
                checked[visible_path(name, self._visible, where)] = int(value)
            elif isinstance(value, str | list) or _is_operator(value):
                checked[checked_name(name, where)] = self._expression(cast("object", value), where)
            else:
                raise refuse("a $project takes 0, 1 or an expression; $literal makes one of a value", where)
        if len(dropped) < len(members):
            others = {name for name in members if name not in dropped}
            implied = {"_id"} & self._visible - set(dropped)
            self._now_visible(others | implied)
        return checked

    def _add(self, body: object, at: str) -> Clause:
        members = _members(body, at)
        checked = {
            checked_name(name, at): self._expression(value, f"{at}/{name[:50]}")
            for name, value in members.items()
        }
        self._now_visible(self._visible | set(members))
        return checked

    def _sort(self, body: object, at: str) -> Clause:
        members = _members(body, at)
        for name, direction in members.items():
            visible_path(name, self._visible, f"{at}/{name[:50]}")
            if type(direction) is not int or direction not in (1, -1):
                raise refuse("a direction is 1 or -1", f"{at}/{name[:50]}")
        return members

    def _unwind(self, body: object, at: str) -> Clause:
        options = (
            {"path": body}
            if isinstance(body, str)
            else _only(body, at, "path", optional=("preserveNullAndEmptyArrays",))
        )
        keeps = options.get("preserveNullAndEmptyArrays", False)
        if not isinstance(options["path"], str) or not isinstance(keeps, bool):
            raise refuse("$unwind takes a field, such as $tags", at)
        path = reference(options["path"], self._visible, at)
        self._declared -= {path[1:]}  # from here on it has one of its values, of another type
        return {"path": path, "preserveNullAndEmptyArrays": keeps}

    def _bucket(self, body: object, at: str) -> Clause:
        options = _only(body, at, "groupBy", "boundaries", optional=("default", "output"))
        boundaries = options["boundaries"]
        if not isinstance(boundaries, list) or not 2 <= len(cast("list[Any]", boundaries)) <= MAX_DOCUMENTS:
            raise refuse("boundaries are 2 to 1,000 values", f"{at}/boundaries")
        checked: Clause = {
            "groupBy": self._expression(options["groupBy"], f"{at}/groupBy"),
            "boundaries": [literal(value, f"{at}/boundaries") for value in cast("list[Any]", boundaries)],
        }
        if "default" in options:
            checked["default"] = literal(options["default"], f"{at}/default")
        outputs = _members(options.get("output", {"count": {"$sum": 1}}), f"{at}/output")
        checked["output"] = self._accumulated(outputs, f"{at}/output")
        self._now_visible({"_id", *outputs})
        return checked

    def _facet(self, body: object, at: str) -> Clause:
        members = _members(body, at)
        if len(members) > MAX_FACETS:
            raise refuse(f"at most {MAX_FACETS} facets", at)
        checked: Clause = {}
        before, computed = self._visible, self._computed
        for name, stages in members.items():
            where = f"{at}/{checked_name(name, at)}"
            self._visible, self._computed = before, computed
            checked[name] = [
                self.stage(stage, f"{where}/{index}", nested=True)
                for index, stage in enumerate(self.count(stages, where))
            ]
        self._now_visible(set(members))
        return checked

    def _limit(self, body: object, at: str) -> int:
        return _whole(body, at, least=1, most=MAX_SKIP)

    def _skip(self, body: object, at: str) -> int:
        return _whole(body, at, least=0, most=MAX_SKIP)

    def _sample(self, body: object, at: str) -> Clause:
        return {"size": _whole(_only(body, at, "size")["size"], at, least=1, most=MAX_DOCUMENTS)}

    def _count(self, body: object, at: str) -> str:
        name = checked_name(body, at)
        self._now_visible({name})
        return name

    def _sort_by_count(self, body: object, at: str) -> Any:
        checked = self._expression(body, at)
        self._now_visible({"_id", "count"})
        return checked

    # ── $match ───────────────────────────────────────────────────────────────────────────────────

    def _match(self, body: object, at: str, *, stored: bool = False, depth: int = 1) -> Clause:
        self._checked.step(depth, at)
        if not isinstance(body, dict):
            raise refuse("$match takes conditions by field", at)
        conditions: list[Clause] = []
        for name, wanted in cast("Clause", body).items():
            where = f"{at}/{name[:50]}"
            match name:
                case "$and" | "$or" | "$nor":
                    if not isinstance(wanted, list) or not wanted:
                        raise refuse(f"{name} takes a list of conditions", where)
                    parts = [
                        self._match(part, f"{where}/{index}", stored=stored, depth=depth + 1)
                        for index, part in enumerate(cast("list[Any]", wanted))
                    ]
                    conditions.append({name: parts})
                case "$expr" if not stored:
                    conditions.append({"$expr": self._expression(wanted, where, depth=depth + 1)})
                case "$expr":
                    raise refuse(
                        "$expr goes into a $match after the first; add an empty $sort or $limit", where
                    )
                case _:
                    path = visible_path(name, self._visible, where)
                    key = stored_name(path) if stored else path
                    conditions.append({key: self._wanted(path, wanted, where)})
        return {"$and": conditions} if conditions else {}

    def _wanted(self, path: str, wanted: Any, at: str) -> Any:
        self._checked.step(1, at)
        operators = cast("Clause", wanted) if isinstance(wanted, dict) else {}
        if not operators or set(operators) & {"$date", "$numberDecimal"}:
            return self._compared(path, "$eq", wanted, at)
        checked: Clause = {}
        for operator, operand in operators.items():
            where = f"{at}/{operator[:50]}"
            if operator in _COMPARISONS:
                found = self._compared(path, operator, operand, where)
            elif operator in ("$in", "$nin") and isinstance(operand, list) and len(operand) <= MAX_DOCUMENTS:  # pyright: ignore[reportUnknownArgumentType]
                values = [floor(self._operand(path, value, where)) for value in cast("list[Any]", operand)]
                found = {operator: [to_bson(kept) for kept, exact in values if exact]}
            elif operator == "$exists" and isinstance(operand, bool):
                found = {operator: operand}
            elif operator == "$size":
                found = {operator: _whole(cast("object", operand), where, least=0, most=MAX_SKIP)}
            elif operator == "$not":
                found = {operator: self._wanted(path, operand, where)}
            else:
                raise refuse("operators are $eq $ne $gt $gte $lt $lte $in $nin $exists $size $not", where)
            if found.keys() & checked.keys():
                raise refuse("this says the same as another operator; one of them is enough", where)
            checked |= found
        return checked

    def _compared(self, path: str, operator: str, operand: Any, at: str) -> Clause:
        """Return a comparison with the value, or the equivalent one with the next lower value that BSON has."""
        kept, exact = floor(self._operand(path, operand, at))
        if exact:
            return {operator: to_bson(kept)}
        match operator:
            case "$eq":
                return {"$in": []}
            case "$ne":
                return {"$nin": []}
            case _:
                return {"$gt" if operator.startswith("$gt") else "$lte": to_bson(kept)}

    def _operand(self, path: str, value: Any, at: str) -> Any:
        """Return a value to compare with, of the field's type where the field is still the record's own."""
        checked = literal(value, at)
        if checked is None or self._computed or path not in self._declared or "." in path:
            return checked
        field = self._collection.resource.field(path, pointer=at)
        given = value if isinstance(value, str | int | float | bool) else checked
        return field.compare("eq", given, pointer=at).value

    _CHECKS: Final[Mapping[str, Callable[..., Any]]] = {
        "$match": _match,
        "$group": _group,
        "$project": _project,
        "$addFields": _add,
        "$set": _add,
        "$sort": _sort,
        "$limit": _limit,
        "$skip": _skip,
        "$sample": _sample,
        "$unwind": _unwind,
        "$count": _count,
        "$sortByCount": _sort_by_count,
        "$bucket": _bucket,
        "$facet": _facet,
    }

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    def _expression(self, value: object, at: str, *, depth: int = 1) -> Any:
        return expression(value, self._visible, at, checked=self._checked, depth=depth)

    def _now_visible(self, names: frozenset[str] | set[str]) -> None:
        self._visible = frozenset(names)
        self._computed = True


def _is_operator(value: object) -> bool:
    return isinstance(value, dict) and all(str(name).startswith("$") for name in cast("Clause", value))


def _members(body: object, at: str) -> Clause:
    if not isinstance(body, dict) or not body:
        raise refuse("this stage takes members", at)
    return cast("Clause", body)


def _single(body: object, at: str) -> Clause:
    members = _members(body, at)
    if len(members) != 1:
        raise refuse("one operator, with what it takes", at)
    return members


def _only(body: object, at: str, *needed: str, optional: Sequence[str] = ()) -> Clause:
    members = _members(body, at)
    if not set(needed) <= set(members) <= {*needed, *optional}:
        raise refuse(f"this takes {' '.join([*needed, *optional])}", at)
    return members


def _whole(value: object, at: str, *, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise refuse(f"a whole number from {least} to {most}", at)
    return value
