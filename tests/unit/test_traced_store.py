"""The spans of a data service's database: named by operation and table, without values."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from hybridkit.dataservice._traced_store import TracedStore
from hybridkit.errors import UnavailableError
from hybridkit.ids import new_id
from tests.helpers.spans import attributes_of, recording

MONGO = "mongodb://user:hunter2@db_1:27017,db_2:27017/notes?replicaSet=rs"
POSTGRES = "postgresql://user:hunter2@db/app?sslmode=require"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    with recording(monkeypatch) as exporter:
        yield exporter


@pytest.fixture
def traced(routes: Any) -> Any:
    """The routes of a data service on a PostgreSQL whose notes are in a table of another name."""
    routes.app.state.store = TracedStore(routes.store, POSTGRES, {"notes": "note_rows"})
    return routes


def summaries(exporter: InMemorySpanExporter) -> list[str]:
    """Return the summaries of the database's spans so far, and forget them."""
    found = [span.name for span in exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]
    exporter.clear()
    return found


async def test_a_read_names_its_table_and_no_value(traced: Any, exporter: InMemorySpanExporter) -> None:
    """The span is a child of the request's, and has the names of the conventions."""
    note = await traced.create("hunter2")
    exporter.clear()
    await traced.send("GET", f"/v1/notes/{note['id']}")
    span, request = exporter.get_finished_spans()
    assert span.parent is not None
    assert request.context is not None
    assert span.parent.span_id == request.context.span_id
    assert attributes_of(span) == attributes_of(span) | {
        "db.system.name": "postgresql",
        "db.namespace": "app",
        "db.collection.name": "note_rows",
        "db.operation.name": "SELECT",
        "db.query.summary": "SELECT note_rows",
        "server.address": "db",
    }
    assert "hunter2" not in span.to_json()
    assert note["id"] not in span.to_json()


async def test_every_call_of_the_store_has_a_span(traced: Any, exporter: InMemorySpanExporter) -> None:
    """Reads, pages, aggregations, exports, own calls, and writes of one or several records."""
    note = await traced.create()
    path = f"/v1/notes/{note['id']}"
    assert summaries(exporter) == ["INSERT note_rows"]
    read, update, delete = "SELECT note_rows", "UPDATE note_rows", "DELETE note_rows"
    for method, target, body, named, told in (
        ("GET", "/v1/notes", None, {"prefer": "count=exact"}, [read, read]),
        ("GET", "/v1/notes", None, {"accept": "application/x-ndjson"}, [read]),
        ("POST", "/v1/notes:batch_get", {"ids": [note["id"]]}, {}, [read]),
        ("POST", "/v1/notes:aggregate", {"functions": {"n": ["count"]}}, {}, [read]),
        ("POST", "/v1/notes:aggregate", {"pipeline": []}, {}, [read]),
        ("POST", "/v1/notes:count_letters", {"title": "a"}, {}, ["call"]),
        ("POST", "/v1/notes:praise", {"title": "a"}, {}, ["call"]),
        ("PATCH", path, {"title": "b"}, {"if_match": note["etag"]}, [update]),
        ("DELETE", path, None, {"if_match": "*"}, [delete]),
        ("GET", "/v1/notes", None, {"accept": "application/x-ndjson"}, [read]),
    ):
        answer = await traced.send(method, target, body, **named)
        assert (target, summaries(exporter)) == (target, told), answer.text


async def test_a_transaction_tells_its_steps_once(traced: Any, exporter: InMemorySpanExporter) -> None:
    """However many records it writes, its name stays of low variety."""
    create = {"op": "create", "resource": "notes", "data": {"title": "hunter2"}}
    creates = [{**create, "id": str(new_id())} for _ in range(2)]
    tag = {"op": "create", "resource": "tags", "id": "a", "data": {"id": "a", "color": "red"}}
    answer = await traced.send("POST", "/v1:transact", {"operations": [*creates, tag]})
    assert answer.status_code == 200, answer.text
    (span,) = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert span.name == "INSERT note_rows INSERT tags"
    assert attributes_of(span)["db.operation.batch.size"] == 3
    assert "db.collection.name" not in attributes_of(span)


async def test_a_refusal_is_no_error_and_an_absence_is(
    traced: Any, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks for failing databases finds no stale versions."""
    note = await traced.create()
    exporter.clear()
    stale = await traced.send("PATCH", f"/v1/notes/{note['id']}", {"title": "b"}, if_match='"1.99"')
    assert stale.status_code == 412

    async def away(*_: object, **__: object) -> None:
        raise UnavailableError("the database is away")

    monkeypatch.setattr(traced.store, "get", away)
    assert (await traced.send("GET", f"/v1/notes/{note['id']}")).status_code == 503
    refused, failed = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert refused.status.is_unset
    assert failed.status.status_code is StatusCode.ERROR
    assert attributes_of(failed)["error.type"] == "UnavailableError"


async def test_mongodb_has_its_own_words(routes: Any, exporter: InMemorySpanExporter) -> None:
    """The first host stands for all of them."""
    routes.app.state.store = TracedStore(routes.store, MONGO, {})
    await routes.create()
    (span,) = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert span.name == "insert notes"
    assert attributes_of(span) == attributes_of(span) | {
        "db.system.name": "mongodb",
        "db.namespace": "notes",
        "server.address": "db_1",
        "server.port": 27017,
    }
    assert "hunter2" not in span.to_json()


async def test_what_the_service_does_for_itself_has_no_span(
    traced: Any, exporter: InMemorySpanExporter
) -> None:
    """Health, housekeeping and the relay ask all the time."""
    store = traced.app.state.store
    await store.check()
    await store.signing_key()
    await store.clean()
    assert store.outbox is traced.store.outbox
    assert repr(store).startswith("TracedStore(")
    assert exporter.get_finished_spans() == ()
