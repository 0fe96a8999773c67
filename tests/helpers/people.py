"""People whose data is in records, streams and sagas, which tests of erasure use."""

from collections.abc import Mapping
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BaseModel

from hybridkit.clients import PostgresDataClient
from hybridkit.events import Command, Event
from hybridkit.ids import new_id
from hybridkit.resources import Record, Resource
from hybridkit.sagas import SAGAS
from hybridkit.sagas._records import NewSaga, SagaStatus, StoredMessage, Undo
from hybridkit.streams import Personal, Stream

CANARY: Final = "canary-4711"
"""The data of the person who is forgotten, in every field that has a mark."""
OTHER: Final = "sparrow-0815"
"""The data of another one."""


class PersonFields(BaseModel):
    user_id: UUID
    email: Annotated[str | None, Personal("user_id", formerly=("mail",))] = None
    nickname: Annotated[str, Personal("user_id")] = ""
    city: str = ""


class Registered(Event, PersonFields, type="people_test.registered", version=2, key="user_id"):
    pass


@Registered.upcast(from_version=1)
def renamed(data: dict[str, Any]) -> dict[str, Any]:
    return {("email" if name == "mail" else name): value for name, value in data.items()}


class Wrote(Event, type="people_test.wrote", key="user_id"):
    user_id: UUID
    to_id: UUID
    text: Annotated[str | None, Personal("user_id", field="to_id")] = None


class Person(BaseModel):
    email: str | None = None


PEOPLE: Final = Stream("people", state=Person, key="user_id", snapshot_every=2, publish=False)


@PEOPLE.apply(Registered)
def registered(person: Person, event: Registered) -> Person:
    return Person(email=event.email)


@PEOPLE.apply(Wrote)
def wrote(person: Person, event: Wrote) -> Person:
    return person


class UserFields(BaseModel):
    email: str | None = None
    nickname: str = ""
    city: str = ""


class User(UserFields, Record):
    email: Annotated[str | None, Personal("user_id", field="id")] = None
    nickname: Annotated[str, Personal("user_id", field="id")] = ""


class OrderFields(BaseModel):
    user_id: UUID
    address: str | None = None


class Order(OrderFields, Record):
    address: Annotated[str | None, Personal("user_id")] = None


USERS: Final = Resource("users", record=User, create=UserFields, update=UserFields, audited=True)
ORDERS: Final = Resource("orders", record=Order, create=OrderFields, update=OrderFields, audited=True)


class OrderData(BaseModel):
    user_id: UUID
    address: Annotated[str | None, Personal("user_id")] = None
    total: int = 0


class Refund(Command, queue="people_test.payments", type="command.people_test_refund"):
    user_id: UUID
    account: Annotated[str | None, Personal("user_id")] = None


SAGA_DATA: Final[Mapping[str, type[BaseModel]]] = {"order": OrderData}


def saga(user_id: UUID, canary: str, status: SagaStatus) -> NewSaga:
    """Return a saga's row with the data of a person in its data and its commands."""
    refund = StoredMessage.of(Refund(user_id=user_id, account=canary))
    return NewSaga(
        saga="order",
        key=str(new_id()),
        status=status,
        data=OrderData(user_id=user_id, address=canary, total=5).model_dump(mode="json"),
        sent=[refund],
        undo=[Undo(n=1, command=refund)],
        notes={"event": {"charge": canary}} if status.has_ended else {},
    )


async def write_everywhere(
    client: PostgresDataClient, user_id: UUID, canary: str, *, streams: bool = True
) -> None:
    """Write the data of a person into every field that has a mark."""
    await client.create(USERS, UserFields(email=canary, nickname=canary, city="Berlin"), id=user_id)
    order, _ = [await client.create(ORDERS, OrderFields(user_id=user_id, address=canary)) for _ in range(2)]
    gone = await client.create(ORDERS, OrderFields(user_id=user_id, address=canary))
    await client.update(ORDERS, order, OrderFields(user_id=user_id, address=f"{canary} 2"))
    await client.delete(ORDERS, gone)
    await client.create(SAGAS, saga(user_id, canary, SagaStatus.RUNNING))
    await client.create(SAGAS, saga(user_id, canary, SagaStatus.DONE))
    if streams:
        events = [Registered(user_id=user_id, email=canary, nickname=canary, city="Berlin")] * 2
        loaded = await client.load(PEOPLE, user_id)
        await client.append(PEOPLE, loaded, *[event.model_copy() for event in events])
        sender = new_id()
        await client.append(PEOPLE, sender, Wrote(user_id=sender, to_id=user_id, text=canary))
