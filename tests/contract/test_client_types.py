"""What the type checkers infer from a resource; mypy and pyright read this file, and it runs as well."""

from typing import TYPE_CHECKING, Any, assert_type
from uuid import UUID

from pydantic import BaseModel

from hybridkit.clients import DataTransaction, Find, Handle, MongoDataClient, Page, PostgresDataClient
from hybridkit.resources import Call, Record, Resource


class NewUser(BaseModel):
    email: str


class User(NewUser, Record):
    pass


class UserChanges(BaseModel):
    email: str | None = None


class Place(BaseModel):
    name: str


class Country(Place, Record[str]):
    pass


USERS = Resource("users", record=User, create=NewUser, update=UserChanges)
COUNTRIES = Resource("countries", record=Country, create=Place, update=Place)
RENAME = Call("rename", resource=USERS, request=Place, response=UserChanges)

if TYPE_CHECKING:
    from hybridkit.resources import Aggregation, count

    async def reads(client: PostgresDataClient, user_id: UUID) -> None:
        assert_type(await client.get(USERS, user_id), User)
        assert_type(await client.get_or_none(COUNTRIES, "fr"), Country | None)
        assert_type(client.find(USERS), Find[User])
        assert_type(client.find(USERS).where(USERS["id"] == user_id).order_by("id").page_size(5), Find[User])
        assert_type(await client.find(USERS).page(), Page[User])
        assert_type(await client.find(USERS).first(), User | None)
        assert_type([user async for user in client.find(USERS)], list[User])
        assert_type([user async for user in client.find(USERS).export()], list[User])
        assert_type(await client.get_many(COUNTRIES, ["fr", "it"]), list[Country | None])
        assert_type(client.find(USERS).select(NewUser).where(USERS["id"] == user_id), Find[NewUser])
        assert_type(await client.find(USERS).select(NewUser).page(count="exact"), Page[NewUser])
        assert_type(await client.find(USERS).count(), int)

    async def aggregations(postgres: PostgresDataClient, mongo: MongoDataClient) -> None:
        wanted = Aggregation(functions={"n": count()})
        assert_type(await postgres.aggregate(USERS, wanted), list[dict[str, Any]])
        assert_type(await postgres.aggregate(USERS, wanted, row_type=Place), list[Place])
        assert_type(await mongo.aggregate(USERS, [{"$count": "n"}], row_type=Place), list[Place])
        assert_type(await mongo.aggregate(USERS, wanted), list[dict[str, Any]])
        await postgres.aggregate(USERS, [{"$count": "n"}])  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]

    async def writes(client: PostgresDataClient, user: User) -> None:
        assert_type(await client.create(USERS, NewUser(email="")), User)
        assert_type(await client.update(USERS, user, UserChanges()), User)
        assert_type(await client.upsert(USERS, user.id, NewUser(email="")), User)
        assert_type(await client.replace(USERS, user, NewUser(email="")), User)
        assert_type(await client.undelete(USERS, user.id), User)
        assert_type(await client.call(RENAME, Place(name="")), UserChanges)
        await client.call(RENAME, NewUser(email=""))  # type: ignore[misc] # pyright: ignore[reportArgumentType]
        await client.create(USERS, UserChanges())  # type: ignore[misc] # pyright: ignore[reportArgumentType]
        await client.update(USERS, user, NewUser(email=""))  # type: ignore[misc] # pyright: ignore[reportArgumentType]
        await client.upsert(USERS, user.id, Place(name=""))  # type: ignore[misc] # pyright: ignore[reportArgumentType]

    async def batches(client: PostgresDataClient, user: User) -> None:
        assert_type(await client.create_many(USERS, [NewUser(email="")]), list[User])
        assert_type(await client.update_many(USERS, [(user, UserChanges())]), list[User])
        assert_type(await client.update_many(USERS, [(user.id, UserChanges())]), list[User])
        assert_type(await client.upsert_many(COUNTRIES, [("fr", Place(name=""))]), list[Country])
        await client.delete_many(USERS, [user, user.id])
        await client.create_many(USERS, [Place(name="")])  # type: ignore[misc] # pyright: ignore[reportArgumentType]
        await client.update_many(USERS, [(user, Place(name=""))])  # type: ignore[misc] # pyright: ignore[reportArgumentType]

    async def changes(client: PostgresDataClient, user: User) -> None:
        async def later(user: User) -> UserChanges | None:
            return UserChanges(email=user.email)

        assert_type(await client.modify(USERS, user, later), User)
        assert_type(await client.modify(USERS, user.id, lambda user: UserChanges(email=user.email)), User)
        await client.modify(USERS, user, lambda _: Place(name=""))  # type: ignore[arg-type, return-value] # pyright: ignore[reportArgumentType]

    async def transactions(tx: DataTransaction, user: User) -> None:
        handle = tx.create(USERS, NewUser(email=""))
        assert_type(handle, Handle[User])
        assert_type(handle.id, UUID)
        assert_type(handle.result, User)
        assert_type(tx.update(USERS, user, UserChanges()).id, UUID)
        assert_type(tx.upsert(COUNTRIES, "fr", Place(name="")).id, str)
        tx.create(USERS, Place(name=""))  # type: ignore[misc] # pyright: ignore[reportArgumentType]


def test_a_handle_of_one_record_is_a_handle_of_any() -> None:
    """Handles are covariant, so that functions can take handles of a common base."""

    def name_of(handle: Handle[Record[Any]]) -> str:
        return str(handle.id)

    assert name_of(Handle(USERS, UUID(int=7))) == str(UUID(int=7))
