"""What the type checkers infer from a cache; mypy and pyright read this file, and it runs as well."""

from typing import TYPE_CHECKING, assert_type
from uuid import UUID

from pydantic import BaseModel

from hybridkit.coordination import Broadcast, Cache, Subscription
from hybridkit.events import Event


class User(BaseModel):
    name: str


class Team(BaseModel):
    name: str


class UserChanged(Event, type="typed_user.changed", version=1, key="user_id"):
    user_id: UUID


USERS: Cache[User] = Cache("users", User, tags=lambda user: [user.name])
NAMES = Cache("names", list[str])
CONFIG = Broadcast("config", Team)


@USERS.cached(key="user_id")
async def load_user(user_id: UUID, *, deep: bool = False) -> User:
    return User(name=f"{user_id} {deep}")


@USERS.cached(key=lambda name: name)
async def find_user(name: str) -> User | None:
    return User(name=name) if name else None


if TYPE_CHECKING:
    from hybridkit.messaging import RobustConsumer

    async def always() -> User:
        return User(name="Ada")

    async def sometimes() -> User | None:
        return None

    async def load(user_id: UUID) -> User:
        return User(name=str(user_id))

    async def reload(user_id: UUID, old: User) -> User:
        return old if str(user_id) else await load(user_id)

    async def find(user_id: UUID) -> User | None:
        return User(name=str(user_id))

    async def other() -> Team:
        return Team(name="red")

    async def again(user: User) -> User:
        return user

    async def reads(user_id: UUID) -> None:
        assert_type(await USERS.get_or_load(user_id, always), User)
        assert_type(await USERS.get_or_load("ada", always, refresh=again), User)
        assert_type(await USERS.get_or_load(1, sometimes), User | None)
        assert_type(
            await USERS.get_or_load(1, lambda: load(user_id), refresh=lambda old: reload(user_id, old)), User
        )
        assert_type(
            await USERS.get_or_load(1, lambda: find(user_id), refresh=lambda old: reload(user_id, old)),
            User | None,
        )
        await USERS.get_or_load(1, other)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
        await USERS.get_or_load(1.5, always)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    async def functions(user_id: UUID) -> None:
        assert_type(await load_user(user_id), User)
        assert_type(await load_user(user_id, deep=True), User)
        assert_type(await find_user("ada"), User | None)
        await load_user("ada")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        await load_user(user_id, shallow=True)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
        USERS.cached(key="name")(other)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]

    async def invalidations(user_id: UUID, consumer: RobustConsumer) -> None:
        assert_type(await USERS.invalidate(user_id), bool)
        USERS.invalidated_by(UserChanged, key="user_id", consumer=consumer)
        USERS.invalidated_by(UserChanged, key=lambda event: event.user_id, consumer=consumer)
        USERS.invalidated_by(UserChanged, key=lambda event: event.name, consumer=consumer)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]

    async def broadcasts() -> None:
        await CONFIG.publish(Team(name="red"))
        await CONFIG.publish(User(name="Ada"))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        async with CONFIG.subscribe() as messages:
            assert_type(messages, Subscription[Team])
            assert_type([message async for message in messages], list[Team])


def test_a_decorated_function_keeps_its_name_and_text() -> None:
    """The decorator returns a function that looks like the one that it was given."""
    assert (load_user.__name__, find_user.__name__) == ("load_user", "find_user")
    assert_type(NAMES, Cache[list[str]])
