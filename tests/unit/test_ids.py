"""Ids sort by creation, and derived ids are the same on every run."""

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

import uuid6
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.ids import derived_id, derived_key, new_id, uuid_octets

TICKS_TO_1970 = 0x01B21DD213814000


def test_ids_of_one_thread_grow() -> None:
    """Also those of the same 100 nanoseconds; all are of version 6."""
    ids = [new_id() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert {found.version for found in ids} == {6}


@given(st.uuids())
def test_the_octets_of_an_id_are_its_text(found: UUID) -> None:
    """Also those of a subclass, as other libraries make them."""
    assert uuid_octets(found) == uuid_octets(uuid6.UUID(int=found.int)) == str(found).encode()


def test_an_id_tells_its_time_as_the_library_reads_it() -> None:
    """The layout of RFC 9562, section 5.6, by another implementation of it."""
    before = time.time_ns() // 1_000_000
    found = uuid6.UUID(int=new_id().int)
    assert (found.version, found.variant) == (6, RFC_4122)
    assert before <= (found.time - TICKS_TO_1970) // 10_000 <= time.time_ns() // 1_000_000 + 1


def test_ids_of_many_threads_are_distinct_and_grow_in_each() -> None:
    """Eight threads share one clock."""
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: [new_id() for _ in range(2_000)], range(8)))
    assert all(run == sorted(run) for run in runs)
    assert len({found for run in runs for found in run}) == 16_000


def test_a_derived_id_is_the_same_on_every_run() -> None:
    """A constant, because another process, another day and another release have to make it too."""
    assert str(derived_id("email_tasks:user:1", "create users#0")) == "aee17afa-26c8-82b5-9c3e-c3825bfc7318"
    assert derived_id("a:b:c", "x").version == 8


@given(st.text(), st.text(), st.text(), st.text())
def test_different_claims_and_steps_get_different_keys(
    key: str, step: str, other_key: str, other_step: str
) -> None:
    """Length prefixes keep ("ab", "c") and ("a", "bc") apart."""
    same = (key, step) == (other_key, other_step)
    try:
        assert (derived_key(key, step) == derived_key(other_key, other_step)) == same
    except UnicodeEncodeError:  # a lone surrogate is no text that could have reached us
        return
    assert (derived_id(key, step) == derived_id(other_key, other_step)) == same
    assert len(derived_key(key, step)) == 68
    assert derived_key(key, step, short_lived=True) == derived_key(key, step).replace("hkd_", "hks_")
