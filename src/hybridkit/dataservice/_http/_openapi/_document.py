"""The OpenAPI document of the contract's routes, which FastAPI can't describe, as they read their requests themselves.

QUERY is not in it: OpenAPI 3.1 has no such method. It takes what `POST …:query` takes.

https://spec.openapis.org/oas/v3.1.0
"""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from hybridkit.contract import (
    MAX_BATCH,
    NDJSON_MEDIA_TYPE,
    Append,
    AppendResult,
    Problem,
    Transaction,
    TransactionResult,
)
from hybridkit.contract._erasure import Forget, Forgotten
from hybridkit.dataservice._http._batch_bodies import BATCH_KINDS, BatchKind
from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._call_routes import CallRoute
from hybridkit.dataservice._http._openapi._audit import audit_parts, history_part
from hybridkit.dataservice._http._openapi._operations import (
    READS,
    SCHEMAS,
    WRITES,
    WRITTEN,
    body_part,
    items_schema,
    operation_part,
    page_schema,
    problem_name,
    reference,
    response_part,
)
from hybridkit.dataservice._http._openapi._parts import (
    EXAMPLE_ID,
    PARAMETERS,
    PROBLEMS,
    RESPONSE_HEADERS,
    SECURITY,
    Part,
    aggregation_schema,
    filter_parameters,
    query_options,
    query_schema,
)
from hybridkit.dataservice._http._openapi._streams import STREAM_SCHEMAS, describe_stream
from hybridkit.dataservice._http._requests import JSON_MEDIA_TYPE, MERGE_PATCH_MEDIA_TYPE
from hybridkit.dataservice._http._streams._erasure_route import FORGET_PATH
from hybridkit.dataservice._http._transact_route import TRANSACT_PATH
from hybridkit.resources import AUDIT, AuditEntry
from hybridkit.streams import RecordedEvent
from hybridkit.streams._stream import AnyStream

if TYPE_CHECKING:
    from hybridkit.dataservice._http._callers import Callers


class ContractDocument:
    """The contract's part of the application's OpenAPI document.

    Args:
        bodies: the request bodies of every resource.
        calls: the routes of the service's own calls.
        streams: the kinds of streams.

    Attributes:
        paths: the operations by path and method.
        schemas: the schemas by name.
    """

    def __init__(
        self,
        bodies: Iterable[RequestBodies],
        calls: Sequence[CallRoute],
        streams: Collection[AnyStream] = (),
    ) -> None:
        listed = list(bodies)
        self.paths: dict[str, dict[str, Part]] = {}
        self.schemas: dict[str, Any] = {}
        self._schema_names = self._define(listed, calls, has_streams=bool(streams))
        for resource_bodies in listed:
            own = [route for route in calls if route.call.resource == resource_bodies.resource]
            self._describe(resource_bodies, own)
        for stream in streams:
            self.paths |= describe_stream(stream, self._model(Append), self._model(AppendResult))
        self._describe_transactions(listed)
        self._describe_erasure()
        self._describe_audit([each for each in listed if each.resource.audited])

    def __repr__(self) -> str:
        return f"ContractDocument({sorted(self.paths)})"

    @property
    def components(self) -> dict[str, dict[str, Any]]:
        """The components that the paths refer to."""
        return {
            "schemas": self.schemas,
            "parameters": dict(PARAMETERS),
            "headers": dict(RESPONSE_HEADERS),
            "responses": {problem_name(status): dict(part) for status, part in PROBLEMS.items()},
            "securitySchemes": dict(SECURITY),
        }

    # ── schemas ──────────────────────────────────────────────────────────────────────────────────

    def _define(
        self, bodies: Sequence[RequestBodies], calls: Sequence[CallRoute], *, has_streams: bool
    ) -> dict[type[BaseModel], str]:
        read: list[type[BaseModel]] = [Problem, TransactionResult, Forgotten]
        sent: list[type[BaseModel]] = [Transaction, Forget]
        if has_streams:
            read += [AppendResult, RecordedEvent]
            sent.append(Append)
            self.schemas.update(STREAM_SCHEMAS)
        for models in bodies:
            read.append(models.resource.record)
            sent += [models.create_model, models.replace_model, models.update_model]
            if models.resource.audited:
                read.append(AuditEntry)
        for route in calls:
            read.append(route.call.response)
            sent.append(route.request_model)
        wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [
            *((model, "serialization") for model in dict.fromkeys(read)),
            *((model, "validation") for model in dict.fromkeys(sent)),
        ]
        references, definitions = models_json_schema(wanted, ref_template=SCHEMAS + "{model}")
        self.schemas.update(definitions["$defs"])
        names = {model: pointer["$ref"].removeprefix(SCHEMAS) for (model, _), pointer in references.items()}
        return cast("dict[type[BaseModel], str]", names)

    def _named(self, name: str, schema: Part) -> Part:
        """Add a schema under a name, and return the reference to it."""
        self.schemas[name] = dict(schema)
        return reference(name)

    def _model(self, model: type[BaseModel]) -> Part:
        return reference(self._schema_names[model])

    # ── a resource ───────────────────────────────────────────────────────────────────────────────

    def _describe(self, bodies: RequestBodies, calls: Sequence[CallRoute]) -> None:
        resource = bodies.resource
        name, path = resource.name, resource.path
        described = _Described(self, bodies)
        add = self.paths.setdefault
        add(path, {}).update({"get": described.find(), "post": described.create()})
        add(f"{path}:query", {})["post"] = described.query()
        add(f"{path}:aggregate", {})["post"] = described.aggregate()
        add(f"{path}:batch_get", {})["post"] = described.batch_get()
        for kind in BATCH_KINDS:
            add(f"{path}:batch_{kind}", {})["post"] = described.batch(kind)
        for route in calls:
            add(route.call.path, {})["post"] = self._call(route, name)
        add(f"{path}/{{id}}", {}).update(
            {
                "get": described.get(),
                "put": described.put(),
                "patch": described.patch(),
                "delete": described.delete(),
            }
        )
        if resource.soft_delete:
            add(f"{path}/{{id}}:undelete", {})["post"] = described.undelete()

    def _call(self, route: CallRoute, tag: str) -> Part:
        call = route.call
        answer = self._model(call.response)
        responses = {200: response_part("Done.", answer, () if call.safe else WRITTEN)}
        if not call.safe:
            responses[204] = response_part("Done, and answered without a body.", None, WRITTEN)
        problems = (404, 409, 412, 413, 415, 428, 429, 501)
        return operation_part(
            f"{call.name}_{tag}",
            (route.call.request.__doc__ or call.name).strip().partition("\n")[0],
            READS if call.safe else WRITES,
            responses,
            problems,
            tag=tag,
            body=body_part(self._model(route.request_model)),
        )

    def _describe_audit(self, bodies: Sequence[RequestBodies]) -> None:
        if not bodies:
            return
        entry = self._model(AuditEntry)
        properties = self.schemas[self._schema_names[AuditEntry]]["properties"]
        selection = self._named("AuditEntrySelection", {"type": "object", "properties": properties})
        page = self._named("AuditEntryPage", page_schema({"anyOf": [entry, selection]}))
        self.paths.update(audit_parts(page, self._named("AuditEntryQuery", query_schema(AUDIT))))
        for each in bodies:
            record = self.schemas[self._schema_names[each.resource.record]]
            history = history_part(each.resource, record["properties"]["id"], page)
            self.paths[f"{each.resource.path}/{{id}}:history"] = {"get": history}

    def _describe_transactions(self, bodies: Sequence[RequestBodies]) -> None:
        responses = {
            200: response_part("All of it is done.", self._model(TransactionResult), WRITTEN),
            204: response_part("All of it is done, and answered without a body.", None, WRITTEN),
        }
        first = bodies[0].resource.name if bodies else "users"
        example = {"operations": [{"op": "assert", "resource": first, "id": EXAMPLE_ID}]}
        self.paths[TRANSACT_PATH] = {
            "post": operation_part(
                "transact",
                "Several operations and events, all or nothing",
                WRITES,
                responses,
                (404, 409, 412, 413, 415, 428, 501),
                tag="transactions",
                body=body_part(self._model(Transaction), example=example),
            )
        }

    def _describe_erasure(self) -> None:
        responses = {
            200: response_part(
                "A part of it is done; `next` begins the next one.", self._model(Forgotten), ()
            )
        }
        example = {"subject": "user_id", "id": EXAMPLE_ID}
        self.paths[FORGET_PATH] = {
            "post": operation_part(
                "forget",
                "Erase the personal data of one person",
                WRITES,
                responses,
                (409, 413, 415),
                tag="erasure",
                body=body_part(self._model(Forget), example=example),
            )
        }


class _Described:
    """The descriptions of one resource's routes."""

    def __init__(self, document: ContractDocument, bodies: RequestBodies) -> None:
        self._resource = bodies.resource
        self._new = document._model(bodies.create_model)  # noqa: SLF001 - the other half of one class
        self._whole = document._model(bodies.replace_model)  # noqa: SLF001
        self._changes = document._model(bodies.update_model)  # noqa: SLF001
        self.record = document._model(bodies.resource.record)  # noqa: SLF001
        name = self.record["$ref"].removeprefix(SCHEMAS)
        schema = document.schemas[name]
        self._id_schema: Part = schema["properties"]["id"]
        define = document._named  # noqa: SLF001
        selection = define(
            f"{name}Selection",
            {
                "type": "object",
                "properties": schema["properties"],
                "description": f"The fields of {name} that `select` names.",
            },
        )
        self._page = define(f"{name}Page", page_schema({"anyOf": [self.record, selection]}))
        self._items = define(f"{name}Items", items_schema({"anyOf": [self.record, {"type": "null"}]}))
        self._rows = define(f"{name}Rows", items_schema({"type": "object"}))
        self._query = define(f"{name}Query", query_schema(self._resource))
        self._aggregation = define(f"{name}Aggregation", aggregation_schema(self._resource))

    def find(self) -> Part:
        return self._operation(
            "find",
            "Find records",
            ("prefer_count", *READS),
            {200: self._found()},
            (),
            more=[*filter_parameters(self._resource), *query_options(self._resource)],
        )

    def query(self) -> Part:
        return self._operation(
            "query",
            "Find records by any filter",
            ("prefer_count", *READS),
            {200: self._found()},
            (413, 415),
            body=body_part(self._query),
        )

    def aggregate(self) -> Part:
        return self._operation(
            "aggregate",
            "Group records and compute of each group",
            READS,
            {200: response_part("A row for each group.", self._rows)},
            (413, 415, 501),
            body=body_part(self._aggregation),
        )

    def get(self) -> Part:
        responses = {
            200: response_part("The record.", self.record, ("ETag",)),
            304: response_part("The reader has it already.", None, ("ETag",)),
        }
        return self._operation(
            "get",
            "Read a record",
            ("if_match", "if_none_match", *READS),
            responses,
            (404, 412),
            more=[self._id()],
        )

    def create(self) -> Part:
        responses = {201: self._written("Created.", "Location", "ETag")}
        return self._operation(
            "create",
            "Create a record",
            WRITES,
            responses,
            (409, 412, 413, 415, 501),
            body=body_part(self._new),
        )

    def put(self) -> Part:
        responses = {
            200: self._written("Replaced.", "ETag"),
            201: self._written("Created.", "Location", "ETag"),
            204: response_part("Replaced, and answered without a body.", None, ("ETag", *WRITTEN)),
        }
        return self._operation(
            "put",
            "Create or replace a record",
            ("if_match", "only_absent", *WRITES),
            responses,
            (404, 409, 412, 413, 415, 428, 501),
            more=[self._id()],
            body=body_part(self._whole),
        )

    def patch(self) -> Part:
        return self._operation(
            "patch",
            "Change a record",
            ("if_match", *WRITES),
            self._changed("Changed."),
            (404, 409, 412, 413, 415, 428, 501),
            more=[self._id()],
            body=body_part(self._changes, MERGE_PATCH_MEDIA_TYPE, JSON_MEDIA_TYPE),
        )

    def delete(self) -> Part:
        responses = {204: response_part("Removed.", None, WRITTEN)}
        return self._operation(
            "delete",
            "Remove a record",
            ("if_match", *WRITES),
            responses,
            (404, 409, 412, 428, 501),
            more=[self._id()],
        )

    def undelete(self) -> Part:
        return self._operation(
            "undelete",
            "Bring a removed record back; takes who may remove it",
            ("if_match", *WRITES),
            self._changed("Back again."),
            (404, 409, 412, 501),
            more=[self._id()],
        )

    def batch_get(self) -> Part:
        ids = {"type": "array", "items": self._text_id(), "maxItems": MAX_BATCH}
        return self._operation(
            "batch_get",
            "Read records by id",
            READS,
            {200: response_part("In the order of the ids, null for what is not there.", self._items)},
            (413, 415),
            body=body_part(
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["ids"],
                    "properties": {"ids": ids},
                }
            ),
        )

    def batch(self, kind: BatchKind) -> Part:
        responses = {
            200: response_part("In the order of the batch, null for what was removed.", self._items, WRITTEN),
            204: response_part("Done, and answered without a body.", None, WRITTEN),
        }
        return self._operation(
            f"batch_{kind}",
            f"{kind.capitalize()} records, all of them or none",
            WRITES,
            responses,
            (404, 409, 412, 413, 415, 428, 501),
            body=body_part(self._batch_schema(kind)),
        )

    def _batch_schema(self, kind: BatchKind) -> Part:
        properties: dict[str, Any] = {"id": self._text_id()}
        required = ["id"]
        if kind != "delete":
            properties["data"] = self._changes if kind == "update" else self._whole
            required.append("data")
        if kind == "create":
            required.remove("id")
        else:
            properties["if_match"] = {"type": "string"}
        item = {
            "type": "object",
            "additionalProperties": False,
            "required": required,
            "properties": properties,
        }
        items = {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_BATCH}
        return {
            "type": "object",
            "additionalProperties": False,
            "required": ["items"],
            "properties": {"items": items},
        }

    def _found(self) -> Part:
        answer = dict(
            response_part("A page, or every line of an export.", self._page, ("Preference-Applied",))
        )
        lines = {"type": "string", "description": 'A record a line, and `{"$end":true,"count":n}`.'}
        answer["content"] = {**answer["content"], NDJSON_MEDIA_TYPE: {"schema": lines}}
        return answer

    def _changed(self, description: str) -> dict[int, Part]:
        return {
            200: self._written(description, "ETag"),
            204: response_part(f"{description} Answered without a body.", None, ("ETag", *WRITTEN)),
        }

    def _written(self, description: str, *headers: str) -> Part:
        return response_part(description, self.record, (*headers, *WRITTEN))

    def _operation(self, name: str, summary: str, *args: Any, **options: Any) -> Part:
        tag = self._resource.name
        return operation_part(f"{name}_{tag}", summary, *args, tag=tag, **options)

    def _id(self) -> Part:
        return {"name": "id", "in": "path", "required": True, "schema": self._id_schema}

    def _text_id(self) -> Part:
        return self._id_schema if self._id_schema.get("type") == "string" else {"type": "string"}


def add_document(app: FastAPI, document: ContractDocument) -> None:
    """Put the contract before the application's own paths in its OpenAPI document."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        made = build()
        own = dict(made.get("paths", {}))
        security = _security(app)
        contract = {
            path: {method: {**operation, "security": security} for method, operation in item.items()}
            for path, item in document.paths.items()
        }
        paths = {path: {**item, **own.pop(path, {})} for path, item in contract.items()} | own
        components = dict(made.get("components", {}))
        for kind, parts in document.components.items():
            components[kind] = {**components.get(kind, {}), **parts}
        return {**made, "paths": paths, "components": components}

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend the document


def _security(app: FastAPI) -> list[dict[str, list[str]]]:
    """Return the security requirement of each operation: optional, where the settings have no keys for callers."""
    callers: Callers | None = getattr(app.state, "callers", None)
    required = [{"service_token": list[str]()}]
    return required if callers is not None and callers.prove_who_they_are else [{}, *required]
