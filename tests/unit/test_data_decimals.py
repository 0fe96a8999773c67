"""Decimals that come as numbers in JSON: stored as they were written, or refused, on every path."""

import json
from decimal import Decimal
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel

from hybridkit import Record, Resource
from hybridkit.codec import InexactFloat, decode_numbers, encode_json
from hybridkit.testing import FakeDataService


class Cost(BaseModel):
    net: Decimal | None = None


class NewBill(BaseModel):
    total: Decimal = Decimal(0)
    cost: Cost | None = None
    ratio: float | None = None
    notes: dict[str, float] | None = None


class Bill(NewBill, Record):
    pass


BILLS = Resource("bills", record=Bill, create=NewBill, update=NewBill, filterable=("total", "notes.size"))
LOST = ["0.1000000000000000000001", "1e-400", "12345678901234567.5", "1.00000000000000001e2"]


async def writes(body: str) -> dict[str, httpx.Response]:
    """The answers to every kind of write of such data, each to a record of its own."""
    headers = {"content-type": "application/json"}
    async with (
        FakeDataService({BILLS}).serve() as url,
        httpx.AsyncClient(base_url=url, headers=headers) as http,
    ):

        async def send(method: str, path: str, content: str) -> httpx.Response:
            key = {"idempotency-key": f'"{uuid4()}"'}
            return await http.request(method, path, content=content, headers=key)

        old = [(await send("POST", "/v1/bills", "{}")).json()["id"] for _ in range(3)]
        fresh = [str(uuid4()) for _ in range(4)]
        answers = {
            "POST": await send("POST", "/v1/bills", body),
            "PUT": await send("PUT", f"/v1/bills/{fresh[0]}", body),
            "PATCH": await send("PATCH", f"/v1/bills/{old[0]}", body),
        }
        for kind, batched, named in [
            ("create", fresh[1], fresh[2]),
            ("update", old[1], old[2]),
            ("upsert", fresh[3], old[2]),
        ]:
            items = f'{{"items": [{{"id": "{batched}", "data": {body}}}]}}'
            answers[f"batch_{kind}"] = await send("POST", f"/v1/bills:batch_{kind}", items)
            one = f'{{"op": "{kind}", "resource": "bills", "id": "{named}", "data": {body}}}'
            answers[kind] = await send("POST", "/v1:transact", f'{{"operations": [{one}]}}')
        if body.startswith('{"total"'):
            one = f'{{"op": "update", "resource": "bills", "id": "{old[0]}", "increment": {body}}}'
            answers["increment"] = await send("POST", "/v1:transact", f'{{"operations": [{one}]}}')
        return answers


@pytest.mark.parametrize("number", LOST)
@pytest.mark.parametrize("body", ['{"total": %s}', '{"cost": {"net": %s}}'])
async def test_a_number_that_no_float_is_is_no_decimal(body: str, number: str) -> None:
    """Its digits would be lost on the way: each write refuses it, and names the field."""
    pointer = "/total" if "total" in body else "/cost/net"
    for way, answer in (await writes(body % number)).items():
        assert answer.status_code == 422, (way, answer.text)
        assert answer.json()["errors"][0]["pointer"].endswith(pointer), (way, answer.text)


@pytest.mark.parametrize("number", ["0.1", "-1.5e3", "0.100", "123456789012345", "1e22", "0.0"])
async def test_a_number_of_few_digits_is_a_decimal(number: str) -> None:
    """A float tells it from every other decimal of so many digits."""
    for way, answer in (await writes(f'{{"total": {number}}}')).items():
        assert answer.is_success, (way, answer.text)


@pytest.mark.parametrize("number", LOST)
async def test_a_float_and_a_document_take_the_nearest_float(number: str) -> None:
    """There numbers are floats, whichever way they come."""
    for way, answer in (await writes(f'{{"ratio": {number}, "notes": {{"size": {number}}}}}')).items():
        assert answer.is_success, (way, answer.text)
        found = json.loads(answer.text)
        record = (
            found["items"][0] if "items" in found else found["results"][0] if "results" in found else found
        )
        assert record["ratio"] == record["notes"]["size"] == float(number), way


@pytest.mark.parametrize("number", LOST)
def test_a_number_is_written_as_it_was_read(number: str) -> None:
    """What goes through the codec for another reader keeps its digits."""
    body = f'{{"a":[{number}]}}'.encode()
    found = decode_numbers(body)
    assert isinstance(found["a"][0], InexactFloat)
    assert found["a"][0] == float(number)
    assert encode_json(found) == body


async def test_a_filter_compares_with_the_number_that_was_written() -> None:
    """`gt` a little more than what is there finds nothing."""
    fake = FakeDataService({BILLS})
    async with fake.serve() as url, httpx.AsyncClient(base_url=url) as http:
        key = {"idempotency-key": '"first"'}
        await http.post("/v1/bills", json={"total": "0.1"}, headers=key)
        counts: list[int] = []
        for operator in ("eq", "lt", "gt"):
            query = f'{{"where": {{"{operator}": ["total", 0.1000000000000000000001]}}}}'
            answer = await http.post(
                "/v1/bills:query", content=query, headers={"content-type": "application/json"}
            )
            counts.append(len(answer.json()["items"]))
    assert counts == [0, 1, 0]
