"""Sessions on a real Redis: no test waits for one to expire; times to live and stored times are read and set there."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from pydantic import BaseModel

from hybridkit.coordination import Redis, Session, Sessions, connect_redis, use_redis
from hybridkit.dev import Server
from hybridkit.errors import (
    DeclarationError,
    MalformedPayloadError,
    MisuseError,
    NotFoundError,
    PayloadTooLargeError,
    SessionEndedError,
    StaleVersionError,
    UnavailableError,
)
from hybridkit.observability import metrics

pytestmark = pytest.mark.real_server

IDLE_SECONDS = 1800
LIFETIME_SECONDS = 43_200


class Cart(BaseModel):
    """The data of a session."""

    items: list[str] = []
    note: Any = ""


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    """A patient client, as a busy machine may keep Redis from answering."""
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        yield redis


@pytest.fixture
def sessions(redis: Redis) -> Sessions[Cart]:
    return Sessions("web", Cart, redis=redis, idle_seconds=IDLE_SECONDS, lifetime_seconds=LIFETIME_SECONDS)


def key_of(session: Session[Cart]) -> str:
    return f"hk:session:web:record:{session.ref}"


def counted(outcome: str) -> float:
    """Return how many sessions have had an outcome."""
    return float(metrics.sessions.labels("web", outcome)._value.get())


async def shift(redis: Any, session: Session[Cart], field: str, seconds: float) -> None:
    """Move a stored time of a session, as if time had passed."""
    await redis.hincrby(key_of(session), field, int(seconds * 1000))


def adding(item: str) -> Callable[[Cart], Cart]:
    return lambda cart: Cart(items=[*cart.items, item])


# ── the life of one session ──────────────────────────────────────────────────────────────────────


async def test_a_session_is_found_by_its_id(sessions: Sessions[Cart]) -> None:
    """Data, user, label and times are those of the creation."""
    created = await sessions.create(Cart(items=["tea"]), user_id="ada", label="Firefox\non Linux")
    loaded = await sessions.load(created.id)
    assert loaded is not None
    assert loaded.data == Cart(items=["tea"])
    assert (loaded.user_id, loaded.label, loaded.version) == ("ada", "Firefox on Linux", 1)
    assert (loaded.ends_at - loaded.created_at).total_seconds() == LIFETIME_SECONDS
    assert loaded.last_seen_at >= loaded.created_at


async def test_redis_has_no_id_and_neither_has_a_repr(sessions: Sessions[Cart], redis_url: str) -> None:
    """The record has the SHA-256 of the id; nothing that is stored, and no text of the session, shows the secret."""
    session = await sessions.create(Cart(), user_id="ada")
    secret = session.id.partition(".")[2]
    stored: list[bytes] = []
    async with connect_redis(redis_url, decode_responses=False) as plain:
        binary: Any = plain
        for key in await binary.keys("*"):
            stored.append(key)
            if await binary.type(key) == b"hash":
                for name, value in (await binary.hgetall(key)).items():
                    stored += [name, value]
            else:
                stored += await binary.zrange(key, 0, -1)
        assert await binary.hget(key_of(session), "secret") == hashlib.sha256(session.id.encode()).digest()
    assert len(secret) == 43
    assert not [each for each in stored if secret.encode() in each]
    assert secret not in f"{session!r} {session} {sessions!r}"


@pytest.mark.parametrize("used", [True, False])
async def test_the_time_to_live_is_the_idle_time_from_the_last_use(
    sessions: Sessions[Cart], redis: Any, *, used: bool
) -> None:
    """Reading a session sets its time to live in Redis anew; listing it does not."""
    session = await sessions.create(Cart(), user_id="ada")
    await redis.pexpire(key_of(session), 60_000)
    if used:
        await sessions.load(session.id)
    else:
        await sessions.of_user("ada")
    left = await redis.pttl(key_of(session)) / 1000
    assert (left > 60) is used
    assert left <= IDLE_SECONDS


async def test_a_session_lives_no_longer_than_its_lifetime_however_often_it_is_used(
    sessions: Sessions[Cart], redis: Any
) -> None:
    """Near its end the time to live is what is left; after it, the session is gone although its key was there."""
    session = await sessions.create(Cart())
    await shift(redis, session, "ends", -(LIFETIME_SECONDS - 120))
    assert await sessions.load(session.id) is not None
    assert 0 < await redis.pttl(key_of(session)) <= 120_000
    await shift(redis, session, "ends", -121)
    assert await sessions.load(session.id) is None
    assert not await redis.exists(key_of(session))


async def test_a_session_that_nobody_used_has_ended_also_where_its_key_is_still_there(
    sessions: Sessions[Cart], redis: Any
) -> None:
    """The stored time of the last use counts too, for a key whose time to live was set by longer settings."""
    session = await sessions.create(Cart())
    await shift(redis, session, "seen", -IDLE_SECONDS - 1)
    assert await sessions.load(session.id) is None


@pytest.mark.parametrize(
    "sent", ["", "x" * 66, "a.b", "%s.%s", "\x00" * 66, "{ref}.", "{ref}.{secret}=", "ß" * 66]
)
async def test_an_id_that_is_none_is_not_asked_for(sessions: Sessions[Cart], sent: str) -> None:
    """Whatever a browser sends in the place of an id opens nothing, and is counted."""
    session = await sessions.create(Cart())
    before = counted("malformed")
    forged = sent.replace("{ref}", session.ref).replace("{secret}", session.id[23:])
    assert await sessions.load(forged) is None
    assert counted("malformed") == before + 1


async def test_every_changed_character_of_an_id_makes_another_one(sessions: Sessions[Cart]) -> None:
    """No id with one other character opens the session, and the session stays."""
    session = await sessions.create(Cart())
    for place in [*range(22), *range(23, 66)]:
        other = "A" if session.id[place] != "A" else "B"
        forged = f"{session.id[:place]}{other}{session.id[place + 1 :]}"
        assert await sessions.load(forged) is None
    assert await sessions.load(session.id) is not None


async def test_data_that_fits_the_model_no_more_is_no_session(sessions: Sessions[Cart], redis: Any) -> None:
    """A record whose data is of another shape, or no JSON, counts as ended, with a metric."""
    before = counted("unreadable")
    for body in ('{"items": 3}', "{"):
        session = await sessions.create(Cart())
        await redis.hset(key_of(session), "data", body)
        assert await sessions.load(session.id) is None
    assert counted("unreadable") == before + 2


async def test_sessions_that_are_declared_at_import_use_the_redis_of_the_process(redis: Redis) -> None:
    """Before the process has one, the error says what is missing."""
    declared = Sessions("web", Cart)
    with pytest.raises(MisuseError, match="the sessions web"):
        await declared.load(f"{'a' * 22}.{'b' * 43}")
    with use_redis(redis):
        session = await declared.create(Cart(items=["tea"]))
    found = await Sessions("web", Cart, redis=redis).load(session.id)
    assert found is not None
    assert found.data.items == ["tea"]


# ── saving ───────────────────────────────────────────────────────────────────────────────────────


async def test_of_two_saves_at_once_the_second_is_refused(sessions: Sessions[Cart]) -> None:
    """Neither is lost in silence: the first is stored, and the other one is told."""
    session = await sessions.create(Cart())
    saved = await sessions.save(session, Cart(items=["tea"]))
    with pytest.raises(StaleVersionError, match="update"):
        await sessions.save(session, Cart(items=["salt"]))
    loaded = await sessions.load(session.id)
    assert loaded is not None
    assert (loaded.data.items, loaded.version, saved.version) == (["tea"], 2, 2)


async def test_a_save_that_redis_gets_twice_is_one_save(
    sessions: Sessions[Cart], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script answers the second time as the first time: a lost reply makes no conflict with oneself."""
    session = await sessions.create(Cart())
    monkeypatch.setattr("secrets.token_hex", lambda _: "the same")
    first = await sessions.save(session, Cart(items=["tea"]))
    second = await sessions.save(session, Cart(items=["tea"]))
    assert first.version == second.version == 2


async def test_fifty_updates_at_once_are_all_there(redis: Redis, redis_url: str) -> None:
    """Each of fifty requests in two processes that have read the same adds its own item."""
    async with connect_redis(redis_url, timeout_seconds=10) as other:
        replicas = [Sessions("web", Cart, redis=each) for each in (redis, other)]
        session = await replicas[0].create(Cart())
        names = [f"item {number}" for number in range(50)]
        await asyncio.gather(
            *(replicas[number % 2].update(session, adding(name)) for number, name in enumerate(names))
        )
        loaded = await replicas[1].load(session.id)
    assert loaded is not None
    assert sorted(loaded.data.items) == sorted(names)
    assert loaded.version == 51


async def test_fifty_requests_at_once_read_one_session(sessions: Sessions[Cart]) -> None:
    """All of them get it."""
    session = await sessions.create(Cart(items=["tea"]))
    loaded = await asyncio.gather(*(sessions.load(session.id) for _ in range(50)))
    assert {each.data.items[0] for each in loaded if each} == {"tea"}
    assert all(loaded)


async def test_an_update_that_never_comes_first_gives_up(
    sessions: Sessions[Cart], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ten attempts the error is the caller's, as somebody writes without end."""
    session = await sessions.create(Cart())
    rounds: list[int] = []

    def slow(cart: Cart) -> Cart:
        rounds.append(1)
        return cart

    save = sessions.save

    async def overtaken(present: Session[Cart], data: Cart) -> Session[Cart]:
        await save(present, Cart(items=["other"]))
        return await save(present, data)

    monkeypatch.setattr(sessions, "save", overtaken)
    with pytest.raises(StaleVersionError):
        await sessions.update(session, slow)
    assert len(rounds) == 10


async def test_an_update_of_a_session_that_ends_meanwhile_is_refused(
    sessions: Sessions[Cart], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading after a conflict finds nothing."""
    session = await sessions.create(Cart())
    await sessions.save(session, Cart(items=["tea"]))
    await sessions.end(session)
    with pytest.raises(SessionEndedError):
        await sessions.update(session, adding("salt"))
    again = await sessions.create(Cart())

    async def ended_later(present: Session[Cart], data: Cart) -> Session[Cart]:
        await sessions.end(present)
        raise StaleVersionError("another one was first")

    monkeypatch.setattr(sessions, "save", ended_later)
    with pytest.raises(SessionEndedError):
        await sessions.update(again, adding("salt"))


async def test_data_has_a_bound(sessions: Sessions[Cart]) -> None:
    """Over 4 KiB of JSON are refused before Redis is asked, in a creation and in a save."""
    with pytest.raises(PayloadTooLargeError):
        await sessions.create(Cart(note="x" * 4096))
    session = await sessions.create(Cart(note="x" * 4000))
    with pytest.raises(PayloadTooLargeError):
        await sessions.save(session, Cart(note="x" * 4096))
    with pytest.raises(MalformedPayloadError):
        await sessions.save(session, Cart(note=object()))


# ── rotation ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_rotation_kills_the_old_id_and_keeps_the_data(sessions: Sessions[Cart]) -> None:
    """Only the new id opens the session, also for one who had planted the old one before the login."""
    planted = await sessions.create(Cart(items=["tea"]))
    before = counted("wrong_secret")
    signed_in = await sessions.rotate(planted, user_id="ada")
    assert signed_in.id != planted.id
    assert signed_in.ref == planted.ref
    assert await sessions.load(planted.id) is None
    assert counted("wrong_secret") == before + 1
    with pytest.raises(SessionEndedError):
        await sessions.save(planted, Cart())
    with pytest.raises(SessionEndedError):
        await sessions.rotate(planted)
    await sessions.end(planted)
    loaded = await sessions.load(signed_in.id)
    assert loaded is not None
    assert (loaded.user_id, loaded.data.items) == ("ada", ["tea"])


async def test_a_rotation_has_the_data_of_a_save_beside_it(sessions: Sessions[Cart]) -> None:
    """What another request has saved since the session was read is not undone."""
    session = await sessions.create(Cart())
    await sessions.save(session, Cart(items=["tea"]))
    rotated = await sessions.rotate(session)
    assert (rotated.data.items, rotated.version) == (["tea"], 2)


async def test_a_login_begins_the_lifetime_anew_and_a_mere_rotation_does_not(
    sessions: Sessions[Cart], redis: Any
) -> None:
    """The absolute end counts from the login."""
    session = await sessions.create(Cart())
    await shift(redis, session, "ends", -3600)
    loaded = await sessions.load(session.id)
    assert loaded is not None
    rotated = await sessions.rotate(loaded)
    assert rotated.ends_at == loaded.ends_at
    signed_in = await sessions.rotate(rotated, user_id="ada")
    assert (signed_in.ends_at - loaded.ends_at).total_seconds() >= 3600


async def test_a_rotation_that_redis_gets_twice_is_one_rotation(
    sessions: Sessions[Cart], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run of the script finds the new id there, and answers the same."""
    session = await sessions.create(Cart(), user_id="ada")
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: "s" * 43)
    first = await sessions.rotate(session)
    second = await sessions.rotate(session)
    assert first.id == second.id
    assert await sessions.load(first.id) is not None


async def test_one_of_two_rotations_at_once_wins(sessions: Sessions[Cart]) -> None:
    """The other one is told, and the winner's id opens the session."""
    session = await sessions.create(Cart())
    results = await asyncio.gather(*(sessions.rotate(session) for _ in range(10)), return_exceptions=True)
    [winner] = [each for each in results if isinstance(each, Session)]
    assert sum(isinstance(each, SessionEndedError) for each in results) == 9
    assert await sessions.load(winner.id) is not None


async def test_a_session_does_not_change_its_user(sessions: Sessions[Cart]) -> None:
    """A login of another user needs a session of its own; the first one's stays as it is."""
    session = await sessions.create(Cart(items=["Ada's"]), user_id="ada")
    with pytest.raises(MisuseError, match="another user's"):
        await sessions.rotate(session, user_id="bob")
    assert await sessions.load(session.id) is not None
    assert (await sessions.rotate(session, user_id="ada")).user_id == "ada"


# ── the sessions of a user ───────────────────────────────────────────────────────────────────────


async def test_a_user_sees_and_revokes_sessions(sessions: Sessions[Cart], redis: Any) -> None:
    """The last used one comes first, nothing in the list opens a session, and a revoked one is dead at once."""
    phone = await sessions.create(Cart(), user_id="ada", label="phone")
    laptop = await sessions.create(Cart(), user_id="ada", label="laptop")
    await sessions.create(Cart(), user_id="bob", label="Bob's")
    await shift(redis, phone, "seen", -60)
    listed = await sessions.of_user("ada")
    assert [each.label for each in listed] == ["laptop", "phone"]
    assert phone.id[23:] not in repr(listed)
    await sessions.revoke("ada", phone.ref)
    assert await sessions.load(phone.id) is None
    assert await sessions.load(laptop.id) is not None
    assert [each.label for each in await sessions.of_user("ada")] == ["laptop"]


@pytest.mark.parametrize("ref", ["", "x" * 22, "hk:session"])
async def test_only_ones_own_sessions_can_be_revoked(sessions: Sessions[Cart], ref: str) -> None:
    """Another user's session and one that never was are both unknown."""
    bobs = await sessions.create(Cart(), user_id="bob")
    for wrong in (ref, bobs.ref):
        with pytest.raises(NotFoundError):
            await sessions.revoke("ada", wrong)
    assert await sessions.load(bobs.id) is not None


async def test_a_new_password_ends_all_sessions_but_the_own_one(sessions: Sessions[Cart]) -> None:
    """All others are dead at once; without `keep`, all are."""
    kept, *others = [await sessions.create(Cart(), user_id="ada") for _ in range(5)]
    before = counted("revoked")
    await sessions.revoke_all("ada", keep=kept)
    assert [await sessions.load(each.id) for each in others] == [None] * 4
    assert [each.ref for each in await sessions.of_user("ada")] == [kept.ref]
    await sessions.revoke_all("ada")
    assert await sessions.load(kept.id) is None
    assert await sessions.of_user("ada") == []
    await sessions.revoke_all("ada")
    assert counted("revoked") == before + 5


async def test_a_request_under_way_does_not_bring_a_revoked_session_back(
    sessions: Sessions[Cart], redis: Any
) -> None:
    """What it saves or rotates afterwards is refused, and leaves nothing in Redis."""
    session = await sessions.create(Cart(), user_id="ada")
    under_way = await sessions.load(session.id)
    assert under_way is not None
    await sessions.revoke_all("ada")
    with pytest.raises(SessionEndedError):
        await sessions.save(under_way, Cart(items=["tea"]))
    with pytest.raises(SessionEndedError):
        await sessions.rotate(under_way, user_id="ada")
    assert await redis.keys("*") == []


async def test_a_rotation_does_not_escape_a_revocation_beside_it(sessions: Sessions[Cart]) -> None:
    """Whichever comes first, no id of the session opens it afterwards."""
    for _ in range(20):
        session = await sessions.create(Cart(), user_id="ada")
        rotated, _ = await asyncio.gather(
            sessions.rotate(session), sessions.revoke_all("ada"), return_exceptions=True
        )
        assert await sessions.load(session.id) is None
        if isinstance(rotated, Session):
            assert await sessions.load(rotated.id) is None


async def test_a_user_has_so_many_sessions_and_no_more(redis: Redis) -> None:
    """With one more, the one that was used longest ago ends; ended ones don't count."""
    sessions = Sessions("web", Cart, redis=redis, max_per_user=3)
    first, second, third = [await sessions.create(Cart(), user_id="ada") for _ in range(3)]
    for age, session in enumerate((second, third, first)):
        await shift(redis, session, "seen", age - 10)
    fourth = await sessions.create(Cart(), user_id="ada")
    assert await sessions.load(second.id) is None
    await sessions.end(third)
    fifth = await sessions.create(Cart(), user_id="ada")
    alive = {each.ref for each in await sessions.of_user("ada")}
    assert alive == {first.ref, fourth.ref, fifth.ref}


async def test_fifty_logins_at_once_keep_the_bound(redis: Any) -> None:
    """Of fifty sessions that begin together, no more than the bound are left, and the list has no others."""
    sessions = Sessions("web", Cart, redis=redis, max_per_user=5)
    made = await asyncio.gather(*(sessions.create(Cart(), user_id="ada") for _ in range(50)))
    alive = {each.ref for each in made if await sessions.load(each.id)}
    listed = {each.ref for each in await sessions.of_user("ada")}
    assert alive == listed
    assert len(alive) <= 5


async def test_the_list_of_a_user_is_tidied_up_and_expires(sessions: Sessions[Cart], redis: Any) -> None:
    """Ended sessions leave it when it is read or a session begins, and the list ends with the last one."""
    ended, over = [await sessions.create(Cart(), user_id="ada") for _ in range(2)]
    key = "hk:session:web:user:ada"
    assert 0 < await redis.pttl(key) <= LIFETIME_SECONDS * 1000
    await redis.delete(key_of(ended))
    assert [each.ref for each in await sessions.of_user("ada")] == [over.ref]
    assert await redis.zrange(key, 0, -1) == [over.ref]
    await redis.zadd(key, {over.ref: 1})
    last = await sessions.create(Cart(), user_id="ada")
    assert await redis.zrange(key, 0, -1) == [last.ref]


@pytest.mark.parametrize("user", ["a b", "user:{tag}", "ю" * 255, "ada@example.com"])
async def test_any_users_id_is_a_key(sessions: Sessions[Cart], redis: Any, user: str) -> None:
    """Ids of other alphabets, with spaces or braces, find their own sessions, by keys of bounded length."""
    session = await sessions.create(Cart(), user_id=user)
    assert [each.ref for each in await sessions.of_user(user)] == [session.ref]
    assert max(len(key) for key in await redis.keys("*")) < 400
    await sessions.end(session)
    assert await redis.keys("*") == []


# ── what is refused, and what breaks ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options", [{"idle_seconds": 0}, {"max_data_bytes": -1}, {"max_per_user": 0}, {"name": "A b"}]
)
async def test_a_declaration_that_makes_no_sense_is_refused(redis: Redis, options: dict[str, Any]) -> None:
    """The error comes at once."""
    with pytest.raises(DeclarationError):
        Sessions(options.pop("name", "web"), Cart, redis=redis, **options)


@pytest.mark.parametrize("user", ["", "a\nb", "x" * 256])
async def test_a_users_id_has_a_syntax(sessions: Sessions[Cart], user: str) -> None:
    """It is that of the request context, which carries the id into logs and events."""
    with pytest.raises(ValueError, match="255"):
        await sessions.create(Cart(), user_id=user)


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_without_redis_no_session_is_read_or_changed(own_redis_server: Server, how: str) -> None:
    """Every call ends with the same typed error within its deadline, and works again when Redis does."""
    async with connect_redis(own_redis_server.url) as redis:
        sessions = Sessions("web", Cart, redis=redis)
        session = await sessions.create(Cart(), user_id="ada")
        getattr(own_redis_server, how)()
        calls = [
            sessions.create(Cart()),
            sessions.load(session.id),
            sessions.save(session, Cart()),
            sessions.rotate(session),
            sessions.end(session),
            sessions.of_user("ada"),
            sessions.revoke("ada", session.ref),
            sessions.revoke_all("ada"),
        ]
        async with asyncio.timeout(30):
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert Counter(type(each) for each in results) == {UnavailableError: len(calls)}
        if how == "freeze":
            own_redis_server.resume()
