"""The OpenAPI document is whole, valid and says what the routes do; `routes.send` compares each answer with it."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

METHODS = {"get", "put", "post", "patch", "delete"}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


async def test_every_path_is_described_and_every_description_is_a_path(routes: Any) -> None:
    """Only QUERY is missing, a method that OpenAPI 3.1 can't describe."""
    document = (await routes.http.get("/openapi.json")).json()
    described = {(path, method) for path, method, _ in operations(document)}
    served = {
        (item.path, method.lower())
        for item in routes.app.router.routes[0].path_items.values()
        for method in item.endpoints
    }
    assert described == served - {("/v1/notes", "query"), ("/v1/tags", "query")}
    assert document["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere(routes: Any) -> None:
    """No generator of clients would accept one that doesn't."""
    document = routes.app.openapi()
    for reference in set(references(document)):
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        assert part


def test_every_schema_is_one(routes: Any) -> None:
    """The schemas of components, bodies and parameters are valid JSON Schema."""
    document = routes.app.openapi()
    schemas = [*document["components"]["schemas"].values()]
    for _, _, operation in operations(document):
        content = operation.get("requestBody", {"content": {}})["content"]
        schemas.extend(media["schema"] for media in content.values())
        schemas.extend(
            parameter["schema"] for parameter in operation["parameters"] if "$ref" not in parameter
        )
    for schema in schemas:
        Draft202012Validator.check_schema(schema)


def test_every_example_fits_its_schema(routes: Any) -> None:
    """Readers copy examples, so they have to work."""
    document = routes.app.openapi()
    components = document["components"]
    examples = [
        *(
            (part["schema"], part["example"])
            for part in components["parameters"].values()
            if "example" in part
        ),
        *(
            (schema, example)
            for schema in components["schemas"].values()
            for example in schema.get("examples", [])
        ),
    ]
    media = document["paths"]["/v1:transact"]["post"]["requestBody"]["content"]["application/json"]
    examples.append((media["schema"], media["example"]))
    for schema, example in examples:
        Draft202012Validator({**schema, "components": components}).validate(example)


def test_every_operation_has_an_id_of_its_own_and_the_same_header_parameters(routes: Any) -> None:
    """Writes have the key and preferences besides; all have the common problems."""
    seen: set[str] = set()
    for path, method, operation in operations(routes.app.openapi()):
        assert method in METHODS
        assert operation["operationId"] not in seen
        seen.add(operation["operationId"])
        named = {parameter.get("$ref", "").rpartition("/")[2] for parameter in operation["parameters"]}
        assert {"caller", "timeout", "request_id"} <= named
        writes = (
            not path.endswith((":query", ":aggregate", ":batch_get", ":count_letters")) and method != "get"
        )
        assert writes == ("key" in named) == ("prefer_write" in named)
        assert ("{id}" in path) == any(parameter.get("in") == "path" for parameter in operation["parameters"])
        assert {"401", "403", "414", "422", "500", "503", "504"} <= operation["responses"].keys()


def test_records_pages_and_problems_have_names(routes: Any) -> None:
    """Generated clients name their classes by them."""
    schemas = routes.app.openapi()["components"]["schemas"]
    assert {
        "Note",
        "NotePage",
        "NoteItems",
        "NoteQuery",
        "Tag",
        "TagPage",
        "Problem",
        "Transaction",
    } <= schemas.keys()


async def test_routes_of_the_application_are_in_the_document_too(routes: Any) -> None:
    """They come after the contract's, each time the document is made."""

    async def mine() -> int:
        return 1

    routes.app.add_api_route("/mine", mine, methods=["GET"])

    document = routes.app.openapi()
    assert list(document["paths"])[-1] == "/mine"
    assert document == routes.app.openapi()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/notes?select=title&order=stars.desc", None),
        ("GET", "/v1/notes?color=eq.red", None),
        ("POST", "/v1/notes:query", {"where": {"eq": ["title", 1]}}),
        ("POST", "/v1/notes:query", b"{"),
        ("POST", "/v1/notes:aggregate", {"functions": {"n": ["sum", "stars"]}, "group_by": ["title"]}),
        ("POST", "/v1/notes:aggregate", {"pipeline": []}),
        ("POST", "/v1/notes:aggregate", {"pipeline": {}}),
        ("POST", "/v1/notes:aggregate", {"pipeline": [], "limit": 1}),
        ("PUT", "/v1/notes/nonsense", {"title": "a"}),
        ("POST", "/v1:transact", {"operations": [{"op": "create", "resource": "x", "id": "1", "data": {}}]}),
    ],
)
async def test_what_is_answered_is_documented(routes: Any, method: str, path: str, body: object) -> None:
    """The fixture checks each answer against the document; refusals are answers too."""
    await routes.create()
    assert (await routes.send(method, path, body)).status_code in (200, 400, 404, 422, 501)
