"""The context travels in headers; what comes in is checked, and deadlines only shrink."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.clients._write_identity import running_task
from hybridkit.context import Claim, RequestContext, bind, current
from hybridkit.errors import (
    AnswerNotKeptError,
    DeadlinePassedError,
    InvalidHeaderError,
    InvalidRequestError,
)

ids = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=255
) | st.sampled_from(
    ["auth0|17", "idp|17", "user@example.com", "urn:ietf:rfc:8141", "100%", "%41", " a b ", "Ünal Çelik", '"']
)
"""What identity providers give out, and names in any script."""

NO_IDS = ["", "a" * 256, "a\nb", "a\r", "\x00", "\x7f", "\x85", "\u2028", "\ud800"]


@given(ids, st.none() | ids)
def test_ids_cross_http_and_amqp(request_id: str, user_id: str | None) -> None:
    """In HTTP as visible ASCII, which no proxy changes."""
    context = RequestContext(request_id=request_id, user_id=user_id)
    headers = context.to_http_headers()
    assert all(value.isascii() and value.isprintable() and " " not in value for value in headers.values())
    assert RequestContext.from_http_headers(headers) == context
    assert RequestContext.from_amqp_headers(context.to_amqp_headers()) == context


@given(st.text("abcXYZ019._:@/+=-|!$&'()*,;[]{}~", min_size=1))
def test_an_id_of_visible_ascii_is_sent_as_it_is(user_id: str) -> None:
    """Percent-encoding is only for what a header can't carry."""
    assert RequestContext(user_id=user_id).to_http_headers()["x-user-id"] == user_id


@pytest.mark.parametrize("value", NO_IDS)
def test_an_id_that_could_forge_a_line_is_refused_where_it_is_given(value: str) -> None:
    """Left out on the way, it would make the work somebody else's."""
    with pytest.raises(InvalidRequestError, match="user_id has 1 to 255 characters"):
        RequestContext(user_id=value)
    with pytest.raises(InvalidRequestError, match="request_id has 1 to 255 characters"):
        RequestContext(request_id=value)


@pytest.mark.parametrize("value", ["a b", "é", "%FF", "%0A", "a" * 256, "%c3%a9" * 256, "\x7f"])
def test_a_user_in_a_header_that_can_not_be_read_is_refused(value: str) -> None:
    """The work would count as another user's, where a request id is just made anew."""
    with pytest.raises(InvalidHeaderError) as refused:
        RequestContext.from_http_headers({"x-user-id": value})
    assert refused.value.field == "x-user-id"
    assert len(RequestContext.from_http_headers({"x-request-id": value}).request_id) == 36
    assert RequestContext.from_http_headers({"x-user-id": ""}).user_id is None


@pytest.mark.parametrize("value", [*NO_IDS, None, 5, ["x"], b"\xff\n"])
def test_an_id_of_a_message_that_could_forge_a_line_is_replaced(value: object) -> None:
    """A message that is on its way already can't be refused for it."""
    context = RequestContext.from_amqp_headers({"x-request-id": value, "x-user-id": value})
    assert len(context.request_id) == 36
    assert context.user_id is None


def test_header_values_of_other_publishers_may_be_bytes() -> None:
    """AMQP has both, and some clients send texts as bytes."""
    assert RequestContext.from_amqp_headers({"x-request-id": b"req-1"}).request_id == "req-1"


def test_a_deadline_crosses_http_as_the_seconds_that_are_left() -> None:
    """Clocks of two machines differ, so no point in time is sent."""
    context = RequestContext().within(2.0)
    seconds = float(context.to_http_headers()["x-request-timeout"])
    assert 1.5 < seconds <= 2.0
    received = RequestContext.from_http_headers({"x-request-timeout": "2.0"})
    assert 1.5 < (received.remaining_seconds() or 0) <= 2.0


def test_a_deadline_never_crosses_a_queue() -> None:
    """A message may wait there for longer than its sender does."""
    assert "x-request-timeout" not in RequestContext().within(2.0).to_amqp_headers()


def test_a_passed_deadline_is_sent_as_nothing_left() -> None:
    """A negative number would be a bad header for the other side."""
    assert RequestContext(deadline=time.monotonic() - 5).to_http_headers()["x-request-timeout"] == "0.000"


@pytest.mark.parametrize(
    "value", ["soon", "nan", "inf", "-inf", "1e3", "", "2 s", "1,5", "--1", "\u0661", "9" * 400]
)
def test_a_timeout_that_is_no_number_of_seconds_is_refused(value: str) -> None:
    """Ignored, it would be a deadline that doesn't hold."""
    with pytest.raises(InvalidHeaderError, match="number of seconds") as refused:
        RequestContext.from_http_headers({"x-request-timeout": value})
    assert refused.value.field == "x-request-timeout"


@pytest.mark.parametrize("value", ["-1", "-0.2", "-0", "0", "0.000", "-999999999", "-.5"])
def test_a_timeout_of_nothing_or_less_is_a_deadline_that_has_passed(value: str) -> None:
    """A caller that computes what is left sends just that when its time is over."""
    with pytest.raises(DeadlinePassedError):
        RequestContext.from_http_headers({"x-request-timeout": value}).check_deadline()


@pytest.mark.parametrize("value", ["999999", "9999999", "3600.5", "9" * 30])
def test_a_timeout_is_clamped_to_an_hour(value: str) -> None:
    """A number of any length is read."""
    remaining = RequestContext.from_http_headers({"x-request-timeout": value}).remaining_seconds()
    assert remaining is not None
    assert 3500 < remaining <= 3600


def test_a_deadline_only_shrinks() -> None:
    """A part of the work can't give itself more time than the whole has."""
    context = RequestContext().within(1.0)
    assert context.within(5.0) == context
    assert (context.within(0.5).deadline or 0) < (context.deadline or 0)


def test_work_that_nobody_waits_for_is_not_started() -> None:
    """Work with time left, or without a deadline, goes on."""
    RequestContext().check_deadline()
    RequestContext().within(60).check_deadline()
    with pytest.raises(DeadlinePassedError, match="nothing was started"):
        RequestContext(deadline=time.monotonic() - 1).check_deadline()


def test_binding_lasts_as_long_as_its_block() -> None:
    """Blocks nest, and outside of any each call makes a context of its own."""
    with bind(RequestContext(request_id="outer")):
        with bind(RequestContext(request_id="inner")):
            assert current().request_id == "inner"
        assert current().request_id == "outer"
    assert current().request_id != "outer"
    assert current() != current()


async def test_an_answer_that_was_not_kept_is_a_commit() -> None:
    """The work was done before, so the next equal call is the next step."""
    claim = Claim("a:b:c")
    with pytest.raises(AnswerNotKeptError), claim.begin("POST /x", running_task(), method="post") as first:
        raise AnswerNotKeptError("done before")
    with claim.begin("POST /x", running_task(), method="post") as second:
        pass
    assert (repr(first), second.name) == ("Step('POST /x#0')", "POST /x#1")


async def test_a_task_of_a_task_goes_on_after_what_both_have_inherited() -> None:
    """A step is in order with those that its starter took before, whatever it has done itself meanwhile."""
    claim = Claim("a:b:c")

    def write(name: str) -> str:
        with claim.begin(name, running_task(), method="create") as step:
            return step.name

    async def child() -> str:
        write("update users 1")
        return write("create users")

    write("create users")
    assert await asyncio.create_task(child()) == "create users#1"


async def test_claims_within_each_other_know_nothing_of_each_other() -> None:
    """A step of the outer claim orders none of the inner one."""
    outer, inner = Claim("a:b:1"), Claim("a:b:2")
    with outer.begin("create users", running_task(), method="create"):
        pass

    async def write() -> str:
        with inner.begin("create users", running_task(), method="create") as step:
            return step.name

    assert [await asyncio.create_task(write()), await write()] == ["create users#0", "create users#1"]


def test_a_claim_numbers_equal_steps() -> None:
    """The same code in the same order gets the same names when it runs again."""
    claim = Claim("email_tasks:event:7")
    assert [claim.step("create users"), claim.step("create users"), claim.step("update users 1")] == [
        "create users#0",
        "create users#1",
        "update users 1#0",
    ]
    assert repr(claim) == "Claim(key='email_tasks:event:7')"


@given(ids, st.none() | ids)
def test_a_context_with_a_claim_is_the_same_work(request_id: str, user_id: str | None) -> None:
    """A context that gets a claim and a deadline keeps its ids, and leaves the first one as it was."""
    before = RequestContext(request_id=request_id, user_id=user_id)
    claim = Claim("orders:order:42")
    assert before.claimed(claim, deadline=7.0) == RequestContext(
        request_id=request_id, user_id=user_id, deadline=7.0, claim=claim
    )
    assert (before.deadline, before.claim) == (None, None)
