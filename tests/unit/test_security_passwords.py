"""Passwords: hashed well, checked in the same time for everybody, the bad ones refused."""

import asyncio
import threading
import time
from typing import Any

import argon2
import pytest

from hybridkit.errors import DeclarationError, InvalidRequestError, OverloadedError
from hybridkit.security import Passwords
from hybridkit.security._passwords import MAX_LENGTH, MAX_WAITING, _common

GOOD = "correct horse battery"


@pytest.fixture(scope="module")
def passwords() -> Passwords:
    return Passwords(words=["Hybridkit"])


async def test_a_password_is_known_by_its_hash_only(passwords: Passwords) -> None:
    """A hash has the parameters of OWASP's minimum and a salt of its own, and proves the password."""
    one, other = await passwords.hash(GOOD), await passwords.hash(GOOD)
    assert one.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert one != other
    assert await passwords.verify(GOOD, one) == (True, None)
    assert await passwords.verify(GOOD + " ", one) == (False, None)


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("short77", "fewer than 8"),
        ("x" * 128 + "y", "more than 128"),
        ("Password1", "commonest"),
        ("TRUSTNO1", "commonest"),
        ("ababababab", "repeats"),
        ("hybridkit1", "a word"),
        ("ann.smith7", "a word"),
        ("example99", "a word"),
        ("half of a pair \ud800", "no text"),
    ],
)
async def test_a_bad_password_is_refused(password: str, reason: str, passwords: Passwords) -> None:
    """Short, long, common and personal passwords get a problem that says why and quotes nothing."""
    with pytest.raises(InvalidRequestError) as refusal:
        await passwords.hash(password, about=["ann.smith@example.org"], field="new")
    [problem] = refusal.value.errors
    assert problem.pointer == "/new"
    assert reason in problem.message
    assert password not in str(refusal.value)


@pytest.mark.parametrize(
    "password", ["пароль из слов", "🔑" * 2 + "abcdef", "x" * 64 + "yzab" * 16, " a b c d "]
)
async def test_any_text_of_a_good_length_is_a_password(password: str, passwords: Passwords) -> None:
    """All characters count, as they are, without rules of composition."""
    stored = await passwords.hash(password)
    assert (await passwords.verify(password, stored)).is_right


async def test_no_character_is_cut_off(passwords: Passwords) -> None:
    """Two passwords that differ in the last of 128 characters are two passwords."""
    long = "abcdefgh" * (MAX_LENGTH // 8)
    stored = await passwords.hash(long)
    assert not (await passwords.verify(long[:-1] + "x", stored)).is_right
    assert not (await passwords.verify(long + "x", stored)).is_right


def test_the_commonest_passwords_are_known() -> None:
    """The list has 3,000 entries that the length lets through, and its origin and licence."""
    assert len(_common()) == 3000
    assert all(len(each) >= 8 and each == each.casefold() for each in _common())
    assert {"password", "12345678", "qwertyuiop"} <= _common()


async def test_an_old_hash_is_made_anew(passwords: Passwords) -> None:
    """The right password of a hash by other parameters comes with a new hash, and the wrong one with none."""
    old = argon2.PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(GOOD)
    check = await passwords.verify(GOOD, old)
    assert check.is_right
    assert check.new_hash is not None
    assert await passwords.verify(GOOD, check.new_hash) == (True, None)
    assert await passwords.verify("wrong password", old) == (False, None)


@pytest.mark.parametrize("stored", ["", "plain text", "$argon2id$v=19$m=1,t=1,p=1$AA$AA", "$2b$12$abc"])
async def test_a_damaged_hash_lets_nobody_in(stored: str, passwords: Passwords) -> None:
    """A stored value that is no hash of ours refuses every password, its own text too."""
    assert not (await passwords.verify(GOOD, stored)).is_right
    assert not (await passwords.verify(stored, stored)).is_right


async def test_an_unknown_user_takes_as_long(passwords: Passwords) -> None:
    """A name without an account costs the same hash as a wrong password, by the CPU time of the thread."""
    stored = await passwords.hash(GOOD)
    verify: Any = passwords._verify

    def cost(hashed: str | None) -> float:
        rounds = []
        for _ in range(5):
            begun = time.thread_time()
            verify("wrong password", hashed)
            rounds.append(time.thread_time() - begun)
        return min(rounds)

    verify("wrong password", None)  # makes the hash to compare with
    known, unknown, damaged = cost(stored), cost(None), cost("damaged")
    assert 0.5 < unknown / known < 2
    assert 0.5 < damaged / known < 2


async def test_only_so_many_hashes_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes run in a few threads beside the event loop; a crowd waits, and one that is too large is sent away."""
    passwords = Passwords(at_once=2)
    running, most, gate = 0, 0, threading.Event()
    lock = threading.Lock()

    def verify(*_: object) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(10)
        with lock:
            running -= 1
        return "checked"

    monkeypatch.setattr(passwords, "_verify", verify)
    waiting = [asyncio.create_task(passwords.verify(GOOD, None)) for _ in range(MAX_WAITING + 2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await passwords.verify(GOOD, None)
    gate.set()
    checked: list[Any] = await asyncio.gather(*waiting)
    assert set(checked) == {"checked"}
    assert most == 2
    assert repr(passwords) == "Passwords(0 at work)"


@pytest.mark.parametrize(
    "options",
    [
        {"memory_kib": 8192},
        {"passes": 1},
        {"memory_kib": 4096, "passes": 20},
        {"min_length": 7},
        {"at_once": 0},
    ],
)
def test_weak_parameters_are_refused(options: Any) -> None:
    """Nobody can make hashes cheaper than OWASP's minimum, or passwords shorter than 8 characters."""
    with pytest.raises(DeclarationError):
        Passwords(**options)
