"""Passwords: hashed by argon2id, a few at a time, the commonest ones refused.

OWASP's Password Storage Cheat Sheet, and ASVS 5.0, sections 6.2 and 11.4.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from hybridkit.errors import DeclarationError, FieldProblem, InvalidRequestError, OverloadedError
from hybridkit.observability import get_logger

MIN_LENGTH: Final = 8
MAX_LENGTH: Final = 128
MAX_WAITING: Final = 64
"""The most requests that wait for a hash; further ones are told to come back."""
MIN_WORD: Final = 4
"""The shortest part of a name that a password may not be made of."""

_log = get_logger("hybridkit.security")


class PasswordCheck(NamedTuple):
    """The answer to an attempt to sign in.

    Attributes:
        is_right: whether the password is the right one.
        new_hash: a hash by the parameters of today, to be stored in place of the old one; None where that is good.
    """

    is_right: bool
    new_hash: str | None = None


class Passwords:
    """Hashes and checks passwords beside the event loop.

    A hash costs 19 MiB of memory and about 25 ms of CPU time, in one of `at_once` threads.

    Args:
        memory_kib: the memory of a hash.
        passes: the passes over the memory.
        lanes: the threads of one hash.
        at_once: the most hashes at a time.
        min_length: the shortest password that is taken, in characters; at least 8.
        words: words that no password may consist of, such as the name of the product.

    Raises:
        DeclarationError: a parameter is weaker than OWASP's minimum, or passwords may be shorter than 8 characters.
    """

    def __init__(
        self,
        *,
        memory_kib: int = 19_456,
        passes: int = 2,
        lanes: int = 1,
        at_once: int = 4,
        min_length: int = MIN_LENGTH,
        words: Collection[str] = (),
    ) -> None:
        if memory_kib * passes < 19_456 * 2 or memory_kib < 7_168:
            raise DeclarationError("argon2id takes at least 19 MiB in 2 passes, or as much in more passes")
        if not MIN_LENGTH <= min_length <= MAX_LENGTH or at_once < 1:
            raise DeclarationError(
                f"min_length is {MIN_LENGTH} to {MAX_LENGTH} and at_once positive, not {min_length} and {at_once}"
            )
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes)
        self._min_length = min_length
        self._words = tuple(word.casefold() for word in words)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="hybridkit-password")
        self._most = at_once + MAX_WAITING
        self._waiting = 0
        self._dummy = ""

    def __repr__(self) -> str:
        return f"Passwords({self._waiting} at work)"

    async def hash(self, password: str, *, about: Collection[str] = (), field: str = "password") -> str:
        """Return the hash of a new password, or refuse the password.

        Args:
            password: a password that somebody has chosen.
            about: what an attacker knows of that person, such as the name to sign in with.
            field: the name of the field that had the password, for the error.

        Raises:
            InvalidRequestError: the password is too short or too long, one of the commonest, or made of what is known.
            OverloadedError: too many hashes are being made.
        """
        if problem := self._weakness(password, about):
            raise InvalidRequestError(
                "choose another password", errors=[FieldProblem(f"/{field}", "password", problem)]
            )
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, stored: str | None) -> PasswordCheck:
        """Return whether a password is the one of a stored hash.

        It takes the same time without a stored hash, so that nobody learns who has an account.

        Args:
            password: the password of an attempt.
            stored: the hash of the account; None where there is no such account, or it has no password.

        Raises:
            OverloadedError: too many hashes are being made.
        """
        if len(password) > MAX_LENGTH:
            return PasswordCheck(is_right=False)
        return await self._run(lambda: self._verify(password, stored))

    def _verify(self, password: str, stored: str | None) -> PasswordCheck:
        if stored is None:
            self._waste_as_much(password)
            return PasswordCheck(is_right=False)
        try:
            self._hasher.verify(stored, password)
        except VerifyMismatchError:
            return PasswordCheck(is_right=False)
        except (InvalidHashError, VerificationError, UnicodeEncodeError) as error:
            _log.error("stored hash can't be read", reason=type(error).__name__)
            self._waste_as_much(password)
            return PasswordCheck(is_right=False)
        outdated = self._hasher.check_needs_rehash(stored)
        return PasswordCheck(is_right=True, new_hash=self._hasher.hash(password) if outdated else None)

    def _waste_as_much(self, password: str) -> None:
        """Take the time that a check takes."""
        self._dummy = self._dummy or self._hasher.hash(secrets.token_urlsafe(16))
        try:
            self._hasher.verify(self._dummy, password)
        except (VerifyMismatchError, UnicodeEncodeError):
            return

    async def _run[T](self, work: Callable[[], T]) -> T:
        if self._waiting >= self._most:
            raise OverloadedError("too many people sign in at the moment", retry_after_seconds=1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def _weakness(self, password: str, about: Collection[str]) -> str | None:
        """Return why a password is refused, in words that don't quote it; None for a good one."""
        if len(password) < self._min_length:
            return f"it has fewer than {self._min_length} characters"
        if len(password) > MAX_LENGTH:
            return f"it has more than {MAX_LENGTH} characters"
        try:
            password.encode()
        except UnicodeEncodeError:
            return "it has characters that are no text"
        plain = password.casefold()
        if plain in _common():
            return "it is one of the commonest passwords"
        if len(set(plain)) < MIN_WORD:
            return "it repeats too few characters"
        known = [*self._words, *(part for each in about for part in _parts(each))]
        if any(
            word in plain and len(plain) < len(word) + MIN_LENGTH for word in known if len(word) >= MIN_WORD
        ):
            return "it is made of a word that others know"
        return None


@cache
def _common() -> frozenset[str]:
    text = files("hybridkit.security").joinpath("_common_passwords.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))


def _parts(known: str) -> list[str]:
    """Return a name, and of an email address the mailbox and the domain as well."""
    plain = known.casefold()
    mailbox, _, domain = plain.partition("@")
    return [plain, mailbox, domain.partition(".")[0]]
