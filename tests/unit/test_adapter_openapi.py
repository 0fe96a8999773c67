"""The OpenAPI document of an API: valid, complete with problems and keys, and the same from start to start."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Header
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel, Field

from hybridkit.adapters.fastapi import create_app
from hybridkit.security import Principal, Security, public, require
from hybridkit.settings import ApiSettings, ServiceSettings


class Everything(ApiSettings):
    service_name: str = "shop"


class Little(ServiceSettings):
    service_name: str = "shop"


class NewOrder(BaseModel):
    product: str = Field(examples=["a lamp"])
    number: int = 1

    model_config = {"json_schema_extra": {"examples": [{"product": "a lamp", "number": 2}]}}


class Nobody:
    schemes: Mapping[str, Mapping[str, Any]] = {"names": {"type": "http", "scheme": "bearer"}}

    async def authenticate(self, scope: Any) -> Principal | None:
        return None


def shop(settings_class: type[ServiceSettings], **options: Any) -> FastAPI:
    app = create_app(settings_class, title="Shop", **options)
    orders = APIRouter(prefix="/orders", tags=["orders"])
    policies = [require()] if options else []

    @orders.post("", status_code=201, dependencies=policies)
    async def order(body: NewOrder) -> NewOrder:
        return body

    @orders.api_route("/{order_id}", methods=["PUT", "PATCH", "DELETE"], dependencies=policies)
    async def change(order_id: int, body: NewOrder, if_match: Annotated[str, Header()] = "") -> None: ...

    @orders.get("/{order_id}", dependencies=policies, responses={404: {"description": "no such order"}})
    async def read(order_id: int) -> NewOrder:
        return NewOrder(product=str(order_id))

    app.include_router(orders)
    app.add_api_route("/status", lambda: "open", dependencies=[public] if options else [])
    return app


@pytest.mark.parametrize(
    "app",
    [shop(Everything), shop(Little), shop(Everything, security=Security(Nobody()))],
    ids=["everything", "little", "secured"],
)
def test_the_document_is_valid_and_has_no_id_twice(app: FastAPI) -> None:
    """Each operation of a route with several methods has an id of its own, and every reference leads somewhere."""
    document = json.loads(json.dumps(app.openapi()))
    OpenAPIV31SpecValidator(document).validate()
    ids = [each["operationId"] for item in document["paths"].values() for each in item.values()]
    assert len(ids) == len(set(ids)) == 6
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    for reference in {part.split('"')[0] for part in text.split('"#/components/')[1:]}:
        kind, name = reference.split("/")
        assert name in document["components"][kind]


def test_every_operation_has_the_problems_that_apply() -> None:
    """A write can conflict, a change can be stale, a body too long; what a route says itself stays."""
    document = shop(Everything).openapi()
    common = {"400", "429", "500", "503", "504"}
    paths = document["paths"]
    for path, method, statuses in (
        ("/orders", "post", {"201", "409", "413", "422"}),
        ("/orders/{order_id}", "put", {"200", "404", "409", "412", "413", "422"}),
        ("/orders/{order_id}", "get", {"200", "404", "422"}),
        ("/status", "get", {"200"}),
    ):
        responses = paths[path][method]["responses"]
        assert set(responses) == common | statuses
    assert paths["/orders/{order_id}"]["get"]["responses"]["404"] == {"description": "no such order"}
    responses = document["components"]["responses"]
    for status in paths["/orders/{order_id}"]["put"]["responses"]:
        if status == "200":
            continue
        name = paths["/orders/{order_id}"]["put"]["responses"][status]["$ref"].rpartition("/")[2]
        [(media_type, content)] = responses[name]["content"].items()
        assert (media_type, content["example"]["status"]) == ("application/problem+json", int(status))
    assert "Retry-After" in responses["RateLimited"]["headers"]


def test_policies_add_their_problems_and_schemes() -> None:
    """Routes that need an identity answer 401 and 403; an open one does not."""
    document = shop(Everything, security=Security(Nobody())).openapi()
    assert {"401", "403"} <= set(document["paths"]["/orders"]["post"]["responses"])
    assert not {"401", "403"} & set(document["paths"]["/status"]["get"]["responses"])
    assert document["components"]["securitySchemes"]["names"]["scheme"] == "bearer"


def test_writes_take_a_key_where_the_application_keeps_them() -> None:
    """The header is optional, and answers of repetitions say so; without Redis nothing would keep a key."""
    operation = shop(Everything).openapi()["paths"]["/orders"]["post"]
    [header] = [each for each in operation["parameters"] if each["name"] == "Idempotency-Key"]
    assert (header["in"], header["required"]) == ("header", False)
    assert "Idempotency-Replayed" in operation["responses"]["201"]["headers"]
    assert "Idempotency-Key" not in json.dumps(shop(Little).openapi())
    read = shop(Everything).openapi()["paths"]["/orders/{order_id}"]["get"]
    assert [each["name"] for each in read["parameters"]] == ["order_id"]


def test_examples_of_the_models_are_in_the_document() -> None:
    """Those of a whole model and of a field."""
    schema = shop(Little).openapi()["components"]["schemas"]["NewOrder"]
    assert schema["examples"] == [{"product": "a lamp", "number": 2}]
    assert schema["properties"]["product"]["examples"] == ["a lamp"]


PROGRAM = """
import json
from tests.unit.test_adapter_openapi import Everything, shop
print(json.dumps(shop(Everything).openapi()))
"""


def test_the_document_is_the_same_in_every_process() -> None:
    """Clients made from it keep their names: the order of a set of methods, which hashing decides, plays no part."""
    documents = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(documents) == 1
    assert b'"change_orders__order_id__patch"' in documents.pop()
