"""Ids, bodies and answers; queries being built; identities of writes."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.clients import ClientPolicy, Find, Page
from hybridkit.clients._answers import page_from, record_from, records_from, rows_from
from hybridkit.clients._records import given_id, minted_id, record_path, target_of
from hybridkit.clients._transports._base import Response
from hybridkit.clients._write_identity import begin_write, running_task
from hybridkit.codec import encode_json
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.contract._fields import changed_fields, fields_of, parse_id
from hybridkit.errors import (
    DeclarationError,
    InvalidQueryError,
    InvalidRequestError,
    MalformedPayloadError,
    MisuseError,
    ResponseError,
)
from hybridkit.resources import Query, Record, Resource

ID = UUID("1f1e5477-3fd3-6f83-be8e-f44fe982b401")


class NewUser(BaseModel):
    email: str


class User(NewUser, Record):
    pass


class UserChanges(BaseModel):
    email: str | None = None
    data: Any = None


class Place(BaseModel):
    name: str


class Country(Place, Record[str]):
    pass


class Seat(Place, Record[int]):
    pass


class NewCoin(Place):
    id: str


class Coin(Place, Record[str]):
    pass


class Changes(BaseModel):
    email: str | None = None
    name: str | None = None


USERS = Resource(
    "users", record=User, create=NewUser, update=NewUser, filterable=("email",), sortable=("email",)
)
COUNTRIES = Resource("countries", record=Country, create=Place, update=Place)
SEATS = Resource("seats", record=Seat, create=Place, update=Place)
COINS = Resource("coins", record=Coin, create=NewCoin, update=Place)

MOMENT = "2026-01-15T10:30:00Z"
STORED = {
    "id": str(ID),
    "version": 3,
    "created_at": MOMENT,
    "updated_at": MOMENT,
    "etag": '"3-a"',
    "email": "a@example.com",
}


def answer(body: object) -> Response:
    return Response(status=200, headers={}, body=body if isinstance(body, bytes) else encode_json(body))


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("id", [ID, str(ID), str(ID).upper()])
def test_an_id_is_of_the_declared_type(id: UUID | str) -> None:
    """A UUID and its text in any case lead to the same path."""
    assert parse_id(USERS, id) == ID
    assert record_path(USERS, parse_id(USERS, id)) == f"/v1/users/{ID}"


def test_natural_keys_are_escaped() -> None:
    """A key can't reach another path."""
    assert record_path(COUNTRIES, parse_id(COUNTRIES, "../a b?c#d")) == "/v1/countries/..%2Fa%20b%3Fc%23d"
    assert parse_id(SEATS, "7") == parse_id(SEATS, 7) == 7


@pytest.mark.parametrize(("resource", "id"), [(USERS, "7"), (USERS, 7), (SEATS, "x"), (COUNTRIES, "")])
def test_what_is_no_id_is_refused_before_it_is_sent(resource: Resource[Any, Any, Any], id: str | int) -> None:
    """An id of another type, or an empty key, raises without a request."""
    with pytest.raises(InvalidRequestError, match="is no id of a"):
        parse_id(resource, id)


def test_ids_are_minted_where_they_are_uuids() -> None:
    """A natural key is never made up: without one the create is refused."""
    assert minted_id(USERS, ID) == ID
    assert given_id(COUNTRIES, Place(name="France"), "fr") == "fr"
    for resource in (COUNTRIES, SEATS):
        with pytest.raises(InvalidRequestError, match="natural key; pass it as id="):
            minted_id(resource, ID)


def test_an_id_may_be_part_of_the_data() -> None:
    """The id in the data is used where the resource's create model declares one."""
    coin = NewCoin(id="eur", name="Euro")
    assert given_id(COINS, coin, None) == "eur"
    assert fields_of(coin) == {"id": "eur", "name": "Euro"}


def test_a_record_says_in_which_state_it_was_read() -> None:
    """A record carries its ETag into the write, an id alone none."""
    user = User.model_validate(STORED)
    assert target_of(USERS, user) == (ID, '"3-a"')
    assert target_of(USERS, ID) == (ID, None)


@pytest.mark.parametrize("etag", ['"1"\r\nx-evil: 1', '"é"'])
def test_an_etag_that_is_no_header_is_refused(etag: str) -> None:
    """A service can't inject a header by the ETag of a record."""
    with pytest.raises(InvalidRequestError, match="can't be sent as a header"):
        target_of(USERS, User.model_validate(STORED | {"etag": etag}))


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────


def test_only_set_fields_are_changed() -> None:
    """None is sent as a value, which removes what is there (RFC 7396)."""
    assert changed_fields(Changes(email=None)) == {"email": None}
    assert fields_of(Changes()) == {"email": None, "name": None}


def test_what_has_no_json_form_is_named() -> None:
    """The error has the name of the model and not the value."""
    with pytest.raises(MalformedPayloadError, match="UserChanges has no JSON form"):
        fields_of(UserChanges(data=object()))


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_a_record_is_read() -> None:
    """The body of an answer becomes the declared record."""
    assert record_from(USERS, answer(STORED)).email == "a@example.com"


def test_a_page_is_read() -> None:
    """A page has its records and the token of the next one; without a token it is the last."""
    page = page_from(USERS, User, answer({"items": [STORED], "next_page_token": "t"}))
    assert [user.id for user in page.items] == [ID]
    assert page.next_page_token == "t"
    assert page_from(USERS, User, answer({"items": []})) == Page(())


@pytest.mark.parametrize("body", [b"", b"<html>", encode_json(STORED)[:50], {"id": "7"}, [], b"\xff"])
def test_garbage_is_a_typed_error(body: object) -> None:
    """HTML, a cut body or another schema raises `ResponseError` in every reader."""
    for read in (
        partial(record_from, USERS),
        partial(page_from, USERS, User),
        partial(records_from, USERS, count=1),
        partial(rows_from, "users", User),
    ):
        with pytest.raises(ResponseError, match="users") as caught:
            read(answer(body))
        assert caught.value.response_status == 200


def test_the_error_shows_no_values() -> None:
    """What a service sends may be a secret, so only the pointer is told."""
    with pytest.raises(ResponseError) as caught:
        record_from(USERS, answer(STORED | {"version": "hunter2"}))
    assert "hunter2" not in str(caught.value)
    assert "/version" in str(caught.value)


# ── queries ──────────────────────────────────────────────────────────────────────────────────────


class Pages:
    """Answers queries with the records it was given, a page for each."""

    def __init__(self, *pages: Page[User]) -> None:
        self.pages = list(pages)
        self.seen: list[Query] = []

    async def fetch_page(self, resource: Any, model: Any, query: Query, *, count: object) -> Any:
        assert (resource, model, count) == (USERS, User, None)
        self.seen.append(query)
        return self.pages[len(self.seen) - 1]

    def export(self, resource: Any, model: Any, query: Query) -> AsyncGenerator[Any]:
        raise NotImplementedError

    def find(self) -> Find[User]:
        return Find(self, USERS, User)


def users(*emails: str) -> Sequence[User]:
    return [User.model_validate(STORED | {"email": email}) for email in emails]


async def test_iteration_follows_the_pages() -> None:
    """An empty page in the middle isn't the end; only a missing token is."""
    a, b, c = users("a", "b", "c")
    pages = Pages(Page((a, b), "t1"), Page((), "t2"), Page((c,)))
    found = [user.email async for user in pages.find().page_size(2)]
    assert found == ["a", "b", "c"]
    assert [query.page_token for query in pages.seen] == [None, "t1", "t2"]


async def test_a_query_is_built_without_changing_the_one_before() -> None:
    """Conditions and order add up in new queries, and the shared beginning stays as it was."""
    pages = Pages(Page(()), Page(()))
    everyone = pages.find()
    some = everyone.where(USERS["email"] > "a", USERS["email"] < "c").where(USERS["email"] != "b")
    await some.order_by("email", descending=True).order_by("id").page("t")
    await everyone.page()
    built, bare = pages.seen
    assert built.to_params() == [
        ("email", "gt.a"),
        ("email", "lt.c"),
        ("email", "neq.b"),
        ("order", "email.desc,id.asc"),
        ("page_token", "t"),
    ]
    assert bare == Query()
    assert repr(everyone) == f"Find('users', {Query()!r})"


async def test_the_first_record_costs_one_record() -> None:
    """`first` asks for a page of one."""
    (a,) = users("a")
    pages = Pages(Page((a,), "more"), Page(()))
    assert await pages.find().first() == a
    assert await pages.find().first() is None
    assert {query.page_size for query in pages.seen} == {1}


def test_what_the_resource_does_not_declare_is_refused() -> None:
    """An order by another field, or a page of another size, raises while the query is built."""
    find = Pages().find()
    with pytest.raises(InvalidQueryError, match="can't be ordered by 'version'"):
        find.order_by("version")
    for size in (0, 1001):
        with pytest.raises(InvalidQueryError, match="1 to 1000"):
            find.page_size(size)


# ── identities ───────────────────────────────────────────────────────────────────────────────────


def test_outside_a_claim_every_write_is_new() -> None:
    """Two equal writes have two keys and two ids."""
    first, second = (begin_write("create users", method="create") for _ in range(2))
    assert first.key != second.key
    assert repr(first) == f"WriteStep({first.key!r})"
    assert first.id_of() != second.id_of()


async def test_a_write_outside_of_tasks_is_refused() -> None:
    """A callback of the event loop has no task, so nothing is known of the order of its writes."""
    done = asyncio.get_running_loop().create_future()

    def call() -> None:
        try:
            running_task()
        except MisuseError as error:
            done.set_result(error)

    asyncio.get_running_loop().call_soon(call)
    assert "in a task" in str(await done)


async def test_inside_a_claim_a_rerun_has_the_same_identities() -> None:
    """Equal steps are told apart by their order, different claims by their key."""

    def run(claim_key: str) -> list[tuple[str, UUID]]:
        found: list[tuple[str, UUID]] = []
        with bind(RequestContext(claim=Claim(claim_key))):
            for name in ("create users", "create users", f"update users {ID}"):
                with begin_write(name, method="create") as write:
                    found.append((write.key, write.id_of()))
        return found

    assert run("a:b:1") == run("a:b:1")
    assert len({*run("a:b:1"), *run("a:b:2")}) == 6
    assert all(key.startswith("hkd_") for key, _ in run("a:b:1"))


@pytest.mark.parametrize("name", ["read_timeout_seconds", "connect_timeout_seconds", "max_in_flight"])
def test_a_policy_that_lets_nothing_through_is_refused(name: str) -> None:
    """A limit of 0 raises, and the error has its name."""
    limits: dict[str, Any] = {name: 0}
    with pytest.raises(DeclarationError, match=name):
        ClientPolicy(**limits)


def test_a_policy_may_have_no_queue_but_no_negative_one() -> None:
    """Without a queue a call beyond the limit is refused at once, which one may want."""
    assert ClientPolicy(max_queued=0).max_queued == 0
    with pytest.raises(DeclarationError, match="max_queued"):
        ClientPolicy(max_queued=-1)
