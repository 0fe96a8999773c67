"""Log lines fit a strict index of the Elastic Common Schema, whatever is logged."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.observability._ecs import FIELDS, OBJECTS, fits
from hybridkit.observability._logging import _json_renderer
from hybridkit.settings import ServiceSettings
from tests.helpers.ecs import TYPES, refusals

SETTINGS = ServiceSettings(service_name="users_api", environment="test")

ODD_NAMES = ("plan", "a.b", "labels.x", "event", "stack", "request_id", "user_id", "message")


def rendered(**event: Any) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(_json_renderer(SETTINGS)("tests", "info", {"exc_info": None, **event}))
    return line


def test_the_names_that_are_kept_are_those_of_the_schema() -> None:
    """With their types; a name that the index lacks would have it refuse the line."""
    assert {name: TYPES.get(name) for name in FIELDS} == dict(FIELDS)
    assert {name.partition(".")[0] for name in TYPES if "." in name} - {"destination"} <= OBJECTS | {"log"}


def test_the_index_refuses_what_it_should() -> None:
    """Or every line would be accepted."""
    line = rendered(event="hello")
    assert refusals(line) == []
    for name, value in {
        "plan": "free",
        "@timestamp": 5,
        "url.port": "http",
        "http": {"version": "1"},
        "labels": {"a": {"b": 1}},
        "message": 5,
    }.items():
        assert [it.partition(":")[0].partition(".")[0] for it in refusals({**line, name: value})] == [
            name.partition(".")[0]
        ]


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats()
    | st.text()
    | st.just(datetime.now(UTC)),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(event=st.dictionaries(st.sampled_from([*FIELDS, *OBJECTS, *ODD_NAMES]) | st.text(), _values))
def test_any_keys_and_values_make_a_line_that_the_index_accepts(event: dict[str, Any]) -> None:
    """Names of the schema with values of a wrong type, objects in place of texts, names with dots."""
    event.pop("exc_info", None)
    assert refusals(rendered(**event)) == []


def test_ids_and_errors_fit_too() -> None:
    """The lines that matter most."""
    line = rendered(event="failed", request_id="req-1", user_id="user-1", exc_info=ValueError("x"))
    assert refusals(line) == []
    assert (line["http.request.id"], line["error.type"]) == ("req-1", "builtins.ValueError")


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("plan", "free", False),
        ("labels", {"a": 1}, False),
        ("url.port", 80, True),
        ("url.port", True, False),
        ("url.port", 2**63, False),
        ("event.risk_score", 0.5, True),
        ("event.risk_score", "0.5", False),
        ("event.start", datetime.now(UTC), True),
        ("event.start", "2026-01-02T03:04:05Z", True),
        ("event.start", "yesterday", False),
        ("client.ip", "::1", True),
        ("client.ip", "fe80::1%eth0", False),
        ("client.ip", "testclient", False),
        ("tags", ["a", "b"], True),
        ("tags", ["a", 1], False),
        ("url.path", "/users", True),
        ("error.message", ["a"], False),
    ],
)
def test_a_name_takes_values_of_its_type_only(name: str, value: object, *, taken: bool) -> None:
    """All others become labels."""
    assert fits(name, value) is taken
