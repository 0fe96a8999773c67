"""Forget a person: the batches of `POST /v1:forget`, until the last."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from hybridkit.clients._answers import adapter_of, read_answer
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._requests import JSON
from hybridkit.clients._transports._base import Response
from hybridkit.clients._write_identity import WriteStep
from hybridkit.codec import encode_json
from hybridkit.contract._erasure import Forget, Forgotten

if TYPE_CHECKING:
    from pydantic import TypeAdapter


async def forget(
    send: Callable[[Intent], Awaitable[Response]], subject: str, person: str, *, dry_run: bool
) -> Forgotten:
    """Erase the personal data of a person, or count the rows, and return the sum of all batches."""
    rows: Counter[str] = Counter()
    adapter: TypeAdapter[Forgotten] = adapter_of(Forgotten)
    wanted = Forget(subject=subject, id=person, dry_run=dry_run)
    while True:
        body = encode_json(wanted.model_dump())
        # A batch that is repeated finds nothing left to do, so the keys need not be the same on another run.
        request = Intent(method="POST", path="/v1:forget", headers=JSON, body=body, key=WriteStep().key)
        done = read_answer(adapter, await send(request), what="the outcome of an erasure")
        rows.update(done.rows)
        if done.next is None:
            return Forgotten(rows=dict(rows), announced=done.announced)
        wanted = wanted.model_copy(update={"after": done.next})
