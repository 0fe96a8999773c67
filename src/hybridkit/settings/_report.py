"""Report the problems of settings: one line for each, and never a value."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from hybridkit.settings._secret_url import MASK
from hybridkit.settings._sources import Found, Problem, key, variables


class ProblemsError(Exception):
    """An error that carries the report out of the frames that have seen values."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__()
        self.problems = problems


class Reporting(BaseModel):
    """A base between `BaseSettings`, which collects values, and `BaseModel`, which validates them.

    Both are at hand here: the problems of the sources, and the refusals of the fields.
    """

    def __init__(self, /, **found: Any) -> None:
        values = {
            name: value.value if isinstance(value, Found) else value
            for name, value in found.items()
            if not isinstance(value, Problem)
        }
        broken = {name: value for name, value in found.items() if isinstance(value, Problem)}
        problems = [_line(type(self), name, problem) for name, problem in broken.items()]
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems += _lines(type(self), error, values, skip=broken)
        if problems:
            raise ProblemsError(problems)


def _lines(
    cls: type[BaseModel], error: ValidationError, values: Mapping[str, Any], *, skip: Collection[str]
) -> Iterator[str]:
    for details in error.errors(include_url=False, include_context=False, include_input=False):
        name, *inside = details["loc"] or ("",)
        if name in skip:
            continue
        match details["type"]:
            case "missing":
                problem = "is not set"
            case "extra_forbidden":
                problem = f"is no setting of {cls.__name__}"
            case (
                "value_error" | "assertion_error"
            ):  # from a validator of the user's, which may quote the value
                told = details["msg"].partition(", ")[2]
                problem = _without([values.get(str(name))] if name else values.values(), told)
            case _:
                problem = details["msg"].removeprefix("Input ")
        yield _line(cls, str(name), problem, *inside)


def _without(values: Iterable[Any], told: str) -> str:
    for value in values:
        reveal = getattr(value, "get_secret_value", None)
        text = str(reveal() if reveal else value)
        told = told.replace(text, MASK) if len(text) > 3 else told
    return told


def _line(cls: type[BaseModel], name: str, problem: str, *inside: int | str) -> str:
    fields = {key(cls, field_name): field_name for field_name in cls.model_fields}
    if name not in fields:
        similar = difflib.get_close_matches(name, fields, n=1)
        return ": ".join(filter(None, [name, problem])) + (f"; did you mean {similar[0]}?" if similar else "")
    variable = variables(cls, fields[name])[0]
    place = "".join(f"[{index}]" for index in inside if isinstance(index, int))
    examples = cls.model_fields[fields[name]].examples
    example = f"; for example {variable}={examples[0]}" if examples and "production" not in problem else ""
    return f"{variable}{place}: {problem}{example}"
